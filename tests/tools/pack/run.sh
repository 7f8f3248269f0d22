#!/usr/bin/env bash
# Checks and measures Mix-of-Show on a graphics card, without a network.
set -u

usage() {
  cat <<'END'
bash run.sh [options]

  tests      every WebGPU test of the library: kernels, models, training, fusion
  times      steps of training and pictures, beside PyTorch on the same card if
             python3 has it
  fullsize   Stable Diffusion 1.5's size, random weights: drawing at 512 × 512, a
             step of ED-LoRA

  --only LIST          some of these, such as tests,times (default: all)
  --pretrain FOLDER    instead: go on with pretraining in a folder that
                       pretrain --export --with-state wrote, from
                       unet/checkpoint.safetensors
  --minutes N          for so long (default 8)
  --help               this text

Logs, and the folder as pretraining left it, come into $OUT (default: out beside
this file). The memory of an NVIDIA card is the most that its driver named.
END
}

only=tests,times,fullsize pretrain= minutes=8
while [ $# -gt 0 ]; do
  case $1 in
    --only) only=${2:?} && shift ;;
    --pretrain) pretrain=$(cd "${2:?}" && pwd) || exit 2; shift ;;
    --minutes) minutes=${2:?} && shift ;;
    --help) usage && exit ;;
    *) echo "Cannot run: expected an option of --help, got $1" >&2; exit 2 ;;
  esac
  shift
done

here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here/out}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Not every machine has xz; nearly every one has Python.
if command -v xz >/dev/null; then
  tar -xJf "$here/files.tar.xz" -C "$work"
else
  python3 -c 'import sys, tarfile
tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2])' \
    "$here/files.tar.xz" "$work"
fi || { echo "Cannot unpack: xz or python3 is needed" >&2; exit 1; }

export DENO_DIR=$work/cache DENO_NO_UPDATE_CHECK=1 NO_COLOR=1
export HOME=${HOME:-$work} XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-$work}
export MIX_OF_SHOW_REQUIRE_WEBGPU=1

# Vulkan: a loader, and a file that names the driver.
libraries() { PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -F "$1"; }
if ! libraries libvulkan.so.1 >/dev/null; then
  export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$work/vulkan
fi
driver=$(ls {/etc,/usr/share,/usr/local/share,/usr/local/nvidia/share}/vulkan/icd.d/nvidia*.json 2>/dev/null | head -n 1)
library=$(libraries libGLX_nvidia.so.0 | sed 's/.* => //' | head -n 1)
for folder in /usr/local/nvidia/lib64 /usr/lib64 /usr/lib/x86_64-linux-gnu; do
  [ -z "$library" ] && [ -e $folder/libGLX_nvidia.so.0 ] &&
    library=$folder/libGLX_nvidia.so.0
done
if [ -z "$driver" ] && [ -n "$library" ]; then
  driver=$work/nvidia_icd.json
  printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "%s", "api_version": "1.3.0"}}\n' \
    "$library" >"$driver"
fi
if [ -n "$driver" ]; then
  export VK_DRIVER_FILES=$driver VK_ICD_FILENAMES=$driver
elif command -v nvidia-smi >/dev/null; then
  echo "NVIDIA's driver has no Vulkan here (libGLX_nvidia.so.0); in a container" \
    "NVIDIA_DRIVER_CAPABILITIES=all brings it" >&2
fi

offline=(--cached-only --frozen --no-check)
run=("$work/deno" run -q -P=develop "${offline[@]}")

# part NAME COMMAND...: prints and keeps what it says, and how long it took, and
# the most memory that the driver named.
failed=0
part() {
  local name=$1 watcher= memory=$work/memory
  shift
  printf '\n== %s\n' "$name"
  : >"$memory"
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 200 \
      >"$memory" 2>/dev/null &
    watcher=$!
  fi
  local start=$SECONDS code
  "$@" 2>&1 | tee "$out/$name.log"
  code=${PIPESTATUS[0]}
  [ -n "$watcher" ] && kill "$watcher" && wait "$watcher" 2>/dev/null
  printf -- '-- %s: %s, %s s' "$name" \
    "$([ "$code" = 0 ] && echo ended well || echo "failed with code $code")" \
    $((SECONDS - start)) | tee -a "$out/$name.log"
  sort -n "$memory" | tail -n 1 |
    sed 's/.*/, most memory of the card & MiB/' | tr -d '\n' |
    tee -a "$out/$name.log"
  echo | tee -a "$out/$name.log"
  [ "$code" = 0 ] || failed=1
}

wanted() { [[ ,$only, == *,$1,* ]]; }
cd "$work/app" || exit 1
command -v nvidia-smi >/dev/null &&
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

if [ -n "$pretrain" ]; then
  mkdir -p "$out/models"
  cp -r "$pretrain/." "$out/models/" || exit 1
  train=("${run[@]}" tests/tools/pretrain/main.ts --only unet
    --out "$out/models" --cache "$work/pretrain")
  part pretrain timeout --preserve-status -s INT $((60 * minutes)) \
    "${train[@]}" --backend webgpu --resume
  part export "${train[@]}" --export --with-state
  exit "$failed"
fi

# Tests of several backends have the backend's name in their own.
mapfile -t files < <(grep -rl forEachBackend --include='*_test.ts' tests)
wanted tests && part tests "${run[@]}" tests/tools/test_count.ts \
  "${offline[@]}" --filter '[webgpu]' "${files[@]}"
wanted times && part times "${run[@]}" tests/bench/peer.ts --backend webgpu
wanted fullsize && part fullsize "${run[@]}" tests/tools/fullsize.ts \
  --folder "$work/fullsize" --parts unet,decoder,train
exit "$failed"
