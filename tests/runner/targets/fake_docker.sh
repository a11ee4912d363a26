#!/bin/sh
# A stand-in for docker: it records its calls and answers from the files of the folder $FAKE_DOCKER.
#   info.json, compose_version, config.yaml, ps   the output of the engine and compose
#   layer                                         exists if the image of a setup is built
#   bad_setup, no_plugin, no_image                exist if the setup fails, compose is not installed,
#                                                 or the image is not built
#   gpus                                          the output of nvidia-smi -L in a container
#   no_program                                    exists if the image lacks every program
#   other_files                                   a path that the engine does not see
#   wait                                          a script that runs before a container ends
#   job                                           the script of a container; pid has its process id
answers=$FAKE_DOCKER
{ for word in "$@"; do printf '%s\037' "$word"; done; printf '\n'; } >>"$answers/calls"

case $(basename "$0") in docker-compose) set -- compose "$@" ;; esac
if [ "$1" = compose ] && [ -e "$answers/no_plugin" ] && [ "$(basename "$0")" = docker ]; then
  echo "docker: 'compose' is not a docker command." >&2
  exit 1
fi
while [ "$1" = compose ] && [ "$2" = --profile ]; do
  shift 3
  set -- compose "$@"
done

case "$1 $2" in
"info "*) cat "$answers/info.json"; [ -s "$answers/info.json" ] ;;
"compose version") cat "$answers/compose_version" ;;
"compose config") cat "$answers/config.yaml" ;;
"compose build") echo "Step 1/9"; rm -f "$answers/no_image" ;;
"compose run")
  printf '%s' "$WANDB_API_KEY" >"$answers/key"
  printf '%s' "$GPT_RUNNER_IMAGE" >"$answers/image"
  case " $* " in
  *" -d "*) echo 0123456789abcdef ;;
  *) exec sh "$answers/job" ;;
  esac
  ;;
"image inspect")
  case "$5" in
  gpt-runner-setup:*) echo sha256:def; [ -e "$answers/layer" ] ;;
  *) echo sha256:abc; [ ! -e "$answers/no_image" ] ;;
  esac
  ;;
"create "*)
  if [ -e "$answers/other_files" ]; then
    echo "docker: Error response from daemon: invalid mount config for type \"bind\": bind source path does not exist: $(cat "$answers/other_files")" >&2
    exit 1
  fi
  echo 0123
  ;;
"run --rm")
  case "$3" in
  --entrypoint) [ ! -e "$answers/no_program" ] || exit 127 ;;
  *) cat "$answers/gpus" ;;
  esac
  ;;
"build --tag")
  cat >"$answers/layer"
  [ ! -e "$answers/bad_setup" ]
  ;;
"ps "*) cat "$answers/ps" ;;
"kill --signal=INT") kill -INT "$(cat "$answers/pid")" ;;
"kill --signal=TERM") kill -TERM "$(cat "$answers/pid")" ;;
"kill "*) kill -KILL "$(cat "$answers/pid")" ;;
"stop "*) echo "$2" ;;
"exec "*) exit 3 ;;
"wait "*) [ ! -e "$answers/wait" ] || sh "$answers/wait" ;;
"logs "*) echo "from the container" ;;
"rm "*) ;;
*) echo "fake docker: $*" >&2; exit 64 ;;
esac
