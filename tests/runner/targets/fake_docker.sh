#!/bin/sh
# A stand-in for docker: it notes how it is called and answers from the files of the folder $FAKE_DOCKER.
#   info.json, compose_version, config.yaml, ps    what the engine and compose say
#   layer, bad_setup                               the image of a setup is built; it can't be
#   no_plugin, no_image                            if there: docker has no compose; the image is not built
#   gpus                                           what nvidia-smi -L says in a container
#   job                                            what a container does; its process id stands in pid
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
  gpt-runner-setup:*) [ -e "$answers/layer" ] ;;
  *) echo sha256:abc; [ ! -e "$answers/no_image" ] ;;
  esac
  ;;
"run --rm") cat "$answers/gpus" ;;
"build --tag")
  cat "$4/Dockerfile" "$4/requirements.txt" >"$answers/layer"
  [ ! -e "$answers/bad_setup" ]
  ;;
"ps "*) cat "$answers/ps" ;;
"kill --signal=INT") kill -INT "$(cat "$answers/pid")" ;;
"kill --signal=TERM") kill -TERM "$(cat "$answers/pid")" ;;
"kill "*) kill -KILL "$(cat "$answers/pid")" ;;
"stop "*) echo "$2" ;;
"logs "*) echo "from the container" ;;
"rm "*) ;;
*) echo "fake docker: $*" >&2; exit 64 ;;
esac
