#!/usr/bin/env bash
# What a GPU is asked: at most eight minutes in all, the most valuable rows first. Nothing is fetched.
#
#   benchmarks/gpu.sh                                   # JSON into benchmarks/results
#   OUT=/tmp/out benchmarks/gpu.sh --bundle B --data D  # strength and evaluate on a network and images of yours
#   benchmarks/gpu.sh --wheels DIR                      # with the packages of these wheels, unpacked into a temporary folder
#   benchmarks/gpu.sh --cifar DIR                       # a call of its own: a robust network on CIFAR-10, with all the time
#   OUT=/tmp/out benchmarks/gpu.sh --device cpu --tiny  # a rehearsal: every row, tiny, on the processor; no figure means anything
#
# Every row writes its JSON as it goes, and has a limit in seconds; what was cut off or failed is said, and the next row
# runs. BUDGET (480) is all rows' together, PYTHON the interpreter. Without --data networks learn some steps on drawn
# patterns, and the JSON says so. Exit code: 0 if every row ran to its end, 1 if one did not, 2 if none can run.
set -u
cd "$(dirname "$0")/.." || exit 2
device=cuda tiny= bundle= data= wheels= cifar=
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=${2:-} && shift ;;
    --tiny) tiny=1 ;;
    --bundle) bundle=${2:-} && shift ;;
    --data) data=${2:-} && shift ;;
    --wheels) wheels=${2:-} && shift ;;
    --cifar) cifar=${2:-} && shift ;;
    *) echo "gpu.sh: $1 is not an option: --device cuda|cpu, --tiny, --bundle, --data, --wheels, --cifar" >&2; exit 2 ;;
  esac
  shift
done
stop() { echo "gpu.sh: $1" >&2; exit 2; }
case $device in cuda | cpu) ;; *) stop "--device is cuda or cpu, not '$device'" ;; esac
if [ -z "${OUT:-}" ] && { [ -n "$tiny" ] || [ "$device" = cpu ]; }; then stop "a rehearsal measures nothing: name a folder for it, OUT=FOLDER"; fi
[ "${bundle:+given}" = "${data:+given}" ] || stop "--bundle and --data go together"
[ -z "$cifar" ] || [ -d "$cifar/train" ] || stop "--cifar is a folder with train and test, not '$cifar'"
out=${OUT:-benchmarks/results}
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" || exit 2
begun=$SECONDS budget=${BUDGET:-480}
export PYTHONPATH=.:export:runtime${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export XDG_CACHE_HOME=$work/cache TORCHINDUCTOR_CACHE_DIR=$work/inductor TMPDIR=$work
[ "$device" = cuda ] || export CUDA_VISIBLE_DEVICES=

py=
for each in "${PYTHON:-}" python3 python .venv/bin/python; do
  if [ -n "$each" ] && command -v "$each" >/dev/null && "$each" -c 'import torch, torchvision' 2>/dev/null; then py=$each && break; fi
done
[ -n "$py" ] || stop "no Python with torch and torchvision among PYTHON, python3, python and .venv: install them, or name one, PYTHON=FILE"
if [ -n "$wheels" ]; then
  "$py" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl || stop "the wheels in $wheels cannot be installed"
  export PYTHONPATH=$work/site:$PYTHONPATH
fi
missing=$("$py" - <<'EOF'
from importlib.util import find_spec
print(*[n for n in ("msgspec numpy packaging platformdirs psutil PIL rich typer onnx onnxscript onnxruntime timm safetensors".split()) if find_spec(n) is None])
EOF
)
[ -z "$missing" ] || stop "$("$py" -c 'import sys; print(sys.executable)') lacks $missing: install them, or bring their wheels, --wheels FOLDER"
"$py" - "$device" <<'EOF' || exit 2
import sys
from importlib.util import find_spec
import torch
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("gpu.sh: torch sees no GPU: for a rehearsal add --device cpu --tiny")
print(f"torch {torch.__version__} on", torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "the processor")
print("peers:", ", ".join(f"{n} {'is' if find_spec(n) else 'is NOT'} here" for n in ("torchattacks", "foolbox", "art")))
EOF

failed=0
row() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 left=$((budget - SECONDS + begun)) code=0 from=$SECONDS
  shift 2
  # a rehearsal may run on a slow machine
  [ "$limit" -le "$left" ] && [ -z "$tiny" ] || limit=$left
  if [ "$limit" -lt 5 ]; then echo "== $name: not begun, the time is over"; failed=1; return; fi
  echo "== $name: at $((SECONDS - begun)) s, at most $limit s"
  timeout --kill-after=5 "$limit" "$@" || code=$?
  [ $code -eq 0 ] && echo "== $name: done in $((SECONDS - from)) s" && return
  failed=1
  if [ $code -ge 124 ] && [ $code -ne 126 ] && [ $code -ne 127 ]; then echo "== $name: CUT OFF after $((SECONDS - from)) s; its finished rows are kept"; else echo "== $name: FAILED with code $code"; fi
}

b=benchmarks
if [ -n "$cifar" ]; then
  small=()
  [ -z "$tiny" ] || small=(--small --epochs 1 --suite fast)
  # what is left is to export and to attack
  row cifar10 "$budget" "$py" $b/cifar10_grid.py --data "$cifar" --work "$out/cifar10" --architectures regnet_y_400mf --recipes n-fgsm \
    --precision fp32 --limit 1000 --time-limit "$((budget * 6 / 10))s" "${small[@]}" --out "$out/cifar10_grid-$device.json"
  exit $failed
fi
if [ -n "$tiny" ]; then
  nets=timm/test_resnet net=timm/test_resnet size="--batch 4 --side 32 --rounds 2" shape="--side 32 --images 24 --train-images 40 --steps 4 --batch 8"
  strong="--batch 8 --limit 24" many="--images 24" train="--arch timm/test_resnet --images 40 --batch 8 --workers 0 --rounds 2"
  calls="--rounds 3 --batches 1" apart="--arch timm/test_resnet --batch 2 --side 32 --rounds 2"
else
  nets=regnet_y_400mf,resnet101,alexnet net=regnet_y_400mf size="--batch 256 --side 224 --rounds 5" shape=
  strong="--batch 100 --limit 500" many="--images 512 --workers 4" train="--images 1280 --batch 128 --workers 8 --rounds 3"
  calls="--rounds 200 --batches 1" apart=
fi
# words are split on purpose
# shellcheck disable=SC2086
{
  row prepare 70 "$py" $b/gpu_checks.py prepare "$work" --arch $net $shape
  made=$work/net.edgeadv patterns=$work/images eps=2/255
  # a budget at which the strength of arithmetics was told apart before
  [ -z "$bundle" ] || eps=0.004
  row arithmetic 30 "$py" $b/gpu_checks.py arithmetic --out "$out/gpu_arithmetic-$device.json"
  row crafting 130 "$py" $b/crafting.py --arch $nets $size --steps 1 --levers float32,tf32,float16 --out "$out/crafting-$device.json"
  row strength 50 "$py" $b/crafting.py --arch "" $strong --eps $eps --levers tf32,float16 --strength "${bundle:-$made}" --data "${data:-$patterns}" --out "$out/crafting-strength-$device.json"
  row evaluate 120 "$py" $b/gpu_checks.py evaluate "${bundle:-$made}" --data "${data:-$patterns}" --eps $eps $many --out "$out/gpu_evaluate-$device.json"
  row compiled 70 "$py" $b/crafting.py --arch $net $size --steps 1 --peers torchattacks --levers float16,job,static+tf32 --out "$out/crafting-compiled-$device.json"
  row latency 60 "$py" $b/torch_latency.py "$made" --variants fp16,fp32 $calls --out "$out/torch_latency-regnet_y_400mf-$device.json"
  row profile 50 "$py" $b/gpu_checks.py profile $apart --out "$out/gpu_profile-$device.json"
  row training 80 "$py" $b/training_throughput.py --data "$patterns" $train --out "$out/training_throughput-$device.json"
}
echo "== all: $((SECONDS - begun)) s"
exit $failed
