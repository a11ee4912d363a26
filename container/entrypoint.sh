#!/usr/bin/env bash
# What every service of docker-compose.yml starts with: it becomes the user who owns the checkout, then
# turns into the command. So what a job writes belongs to that user, whatever their uid, with no setting.
# Where root owns the checkout (root's own clone, rootless Docker) or compose was told a user by
# HOST_UID, there is nothing to change.
set -euo pipefail

if [ "$#" -eq 0 ]; then
  set -- bash
fi

user=$(id -u):$(id -g)
as=()
if [ "$(id -u)" -eq 0 ]; then
  user=$(stat --format %u:%g /workspace)
  uid=${user%:*} gid=${user#*:}
  if [ "$uid" -ne 0 ]; then
    as=(setpriv --reuid "$uid" --regid "$gid" --clear-groups --)
    # Programs that look their user up by uid (the shell's prompt, git, torch) find one.
    if ! getent passwd "$uid" >/dev/null; then
      echo "$LOGNAME:x:$uid:$gid::$HOME:/bin/bash" >>/etc/passwd
    fi
    # A folder that was missing on the host was made by the engine, as root and empty.
    for volume in /vol/data /vol/checkpoints /vol/cache; do
      if [ "$(stat --format %u "$volume")" -eq 0 ] && [ -z "$(ls -A "$volume")" ]; then
        chown "$user" "$volume" || true
      fi
    done
  fi
fi

for volume in /vol/data /vol/checkpoints /vol/cache; do
  if ! "${as[@]}" test -w "$volume"; then
    echo "warning: user $user can't write to ${volume/\/vol/volumes}; on the host, type: sudo chown -R $user volumes" >&2
  fi
done

if ! cmp --silent /workspace/requirements.lock /opt/gpt-runner/requirements.lock; then
  echo "warning: the image was built from another requirements.lock; to renew it, type: docker compose build" >&2
fi

set -- "${as[@]}" "$@"
exec "$@"
