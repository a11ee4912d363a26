#!/usr/bin/env bash
# Entrypoint of every service in docker-compose.yml: switch to the owner of the checkout, then run
# the command. So a job's files belong to that user, whatever their uid. If root owns the checkout
# (root's own clone, rootless Docker) or HOST_UID names a user, there is nothing to switch.
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
    # For programs that look up their user by uid (the shell's prompt, git, torch).
    if ! getent passwd "$uid" >/dev/null; then
      echo "$LOGNAME:x:$uid:$gid::$HOME:/bin/bash" >>/etc/passwd
    fi
    # Docker creates a folder that is missing on the host, empty and owned by root.
    for volume in /vol/data /vol/checkpoints /vol/cache; do
      if [ "$(stat --format %u "$volume")" -eq 0 ] && [ -z "$(ls -A "$volume")" ]; then
        chown "$user" "$volume" || true
      fi
    done
  fi
fi

for volume in /vol/data /vol/checkpoints /vol/cache; do
  if ! "${as[@]}" test -w "$volume"; then
    echo "warning: user $user cannot write to ${volume/\/vol/volumes};" \
      "on the host, run: sudo chown -R $user volumes" >&2
  fi
done

if ! cmp --silent /workspace/requirements.lock /opt/gpt-runner/requirements.lock; then
  echo "warning: the image was built from another requirements.lock; run: docker compose build" >&2
fi

set -- "${as[@]}" "$@"
exec "$@"
