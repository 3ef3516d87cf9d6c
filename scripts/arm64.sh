#!/usr/bin/env bash
# Install the wheel of this checkout for an emulated 64-bit ARM Python, and replay a bundle's golden frames there.
#
#     scripts/arm64.sh [BUNDLE]     # without one, a small network of digits is trained and exported first
#
# Needs no root and installs nothing on this machine: all of it lies below .cache/arm64, or $ARM64_HOME. Exit status: 0 if
# everything agrees, 1 if something does not, 2 if something is missing here. docs/status.md says what that shows.
#
#     PYTHON         a Python of this machine with pip, and for a bundle of digits with edgeadv's demo extra (default:
#                    .venv/bin/python, or else python3)
#     ARM64_CPU      processor to emulate, as QEMU names it (default cortex-a76: it has fp16 arithmetic and dot products)
#     ARM64_REQUIRE  more requirements than the wheel has, e.g. "onnxruntime==1.23.2 numpy<2" for what JetPack 6 gets
#     DEBIAN         where to take Debian packages from (default: what this machine's own apt uses)
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=${ARM64_HOME:-$checkout/.cache/arm64}
cpu=${ARM64_CPU:-cortex-a76}
# the oldest Debian whose QEMU runs ONNX Runtime (QEMU 7.2 of bookworm dies of a signal on its import), and one with a
# Python that every wheel is made for
qemu_suite=trixie qemu_oldest=10
python_suite=bookworm python_version=3.11

say() { printf 'arm64: %s\n' "$*"; }
missing() {
    printf 'arm64: %s\n' "$*" >&2
    exit 2
}

[ $# -le 1 ] || missing "give one bundle, or none: scripts/arm64.sh [BUNDLE]"
bundle=${1:-}
[ -z "$bundle" ] || [ -f "$bundle/manifest.json" ] || missing "$bundle is not a bundle: it has no manifest.json"
[ "$(uname -s)" = Linux ] || missing "user-mode emulation needs Linux"
case $(uname -m) in
aarch64 | arm64) missing "this machine is ARM already: install the wheel and run edgeadv verify as it is" ;;
esac
for tool in apt-get dpkg dpkg-deb awk sha256sum; do
    command -v "$tool" >/dev/null || missing "$tool is not here: this script takes QEMU and Python from Debian packages"
done
python=${PYTHON:-$checkout/.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
"$python" -m pip --version >/dev/null 2>&1 || missing "$python is not here or has no pip: set PYTHON to a Python with pip"
mkdir -p "$home"
home=$(cd "$home" && pwd)

# the addresses that this machine's apt takes packages from, of any distribution
repositories() {
    if [ -n "${DEBIAN:-}" ]; then
        printf '%s\n' "$DEBIAN"
        return
    fi
    local file
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ -r "$file" ] || continue
        case $file in
        *.sources) awk 'tolower($1) == "uris:" { for (i = 2; i <= NF; i++) print $i }' "$file" ;;
        *) awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^[a-z+]+:\//) { print $i; break } }' "$file" ;;
        esac
    done | sort -u
}

# apt of one architecture, with a state of its own in which nothing is installed; proxies and keys are this machine's
private_apt() {
    local state=$1 architecture=$2
    shift 2
    apt-get -qq -o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" \
        -o Dir::Cache="$state/cache" -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::Etc::preferences=- -o Dir::Etc::preferencesparts=- -o APT::Architecture="$architecture" \
        -o APT::Architectures="$architecture" -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 \
        -o Acquire::Languages=none -o Acquire::Retries=2 -o APT::Update::Error-Mode=any "$@"
}

# fetch TARGET SUITE ARCHITECTURE PACKAGE...: unpack packages and what they depend on into the folder TARGET, once
fetch() {
    local target=$1 suite=$2 architecture=$3 state=$home/apt repository signed=""
    shift 3
    [ ! -e "$target/.complete" ] || return 0
    say "fetching $* for $architecture from Debian $suite"
    if [ -r /usr/share/keyrings/debian-archive-keyring.gpg ]; then
        signed="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    fi
    while read -r repository; do
        rm -rf "$state" "$target"
        mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$target"
        : >"$state/status"
        printf 'deb %s%s %s main\n' "$signed" "$repository" "$suite" >"$state/sources.list"
        if private_apt "$state" "$architecture" update 2>"$home/apt.log" &&
            private_apt "$state" "$architecture" install --yes --download-only --no-install-recommends "$@" \
                >/dev/null 2>>"$home/apt.log"; then
            local package
            for package in "$state"/cache/archives/*.deb; do dpkg-deb --extract "$package" "$target"; done
            rm -rf "$state"
            touch "$target/.complete"
            return 0
        fi
    done < <(repositories)
    rm -rf "$state" "$target"
    [ ! -s "$home/apt.log" ] || tail -3 "$home/apt.log" >&2
    missing "no repository of this machine's apt gives $* of Debian $suite for $architecture: is the network there? Elsewhere" \
        "than on Debian set DEBIAN to the address of a mirror of it, and install the package debian-archive-keyring"
}

find_qemu() {
    local major
    qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static || true)
    if [ -n "$qemu" ]; then
        major=$("$qemu" --version | awk '{ print int($3); exit }')
        [ "$major" -lt "$qemu_oldest" ] || return 0
    fi
    fetch "$home/qemu" "$qemu_suite" "$(dpkg --print-architecture)" qemu-user
    qemu=$home/qemu/usr/bin/qemu-aarch64
    # the package has an emulator of 10 MB or so for each of 40 other processors
    find "$home/qemu/usr/bin" -name 'qemu-*' ! -name qemu-aarch64 -delete
    "$qemu" --version >/dev/null || missing "$qemu of Debian $qemu_suite does not run here"
}

# requirements are installed once, for as long as the wheel asks for the same; edgeadv itself every time
install_wheel() {
    local wheel wanted isolation=() platforms=() also=() tag
    rm -rf "$home/wheel" "$home/own"
    # where the build backend is here already, nothing has to be fetched to build
    if "$python" -c 'import hatchling' 2>/dev/null; then isolation=(--no-build-isolation); fi
    "$python" -m pip wheel --quiet --quiet --no-deps "${isolation[@]}" --wheel-dir "$home/wheel" "$checkout" ||
        missing "the wheel of this checkout cannot be built: see pip's message"
    wheel=$(echo "$home"/wheel/*.whl)
    # pip does not take an older tag for a newer system by itself
    for tag in manylinux_2_17 manylinux2014 manylinux_2_27 manylinux_2_28 manylinux_2_31 manylinux_2_34; do
        platforms+=(--platform "${tag}_aarch64")
    done
    local for_arm=("${platforms[@]}" --implementation cp --python-version "$python_version" --only-binary :all:
        --no-warn-conflicts --quiet --quiet)
    read -ra also <<<"${ARM64_REQUIRE:-}"
    wanted=$("$python" -c '
import sys, zipfile
print(sys.argv[2:])
wheel = zipfile.ZipFile(sys.argv[1])
(name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
print(*(line for line in wheel.read(name).decode().splitlines() if line.startswith("Requires-Dist:")), sep="\n")
' "$wheel" "${also[@]}" | sha256sum)
    if [ "$(cat "$home/wanted" 2>/dev/null)" != "$wanted" ]; then
        say "installing what the wheel requires, with the extra ort, for aarch64"
        rm -rf "$home/site" "$home/wanted"
        "$python" -m pip install --target "$home/site" "${for_arm[@]}" "${wheel}[ort]" "${also[@]}" ||
            missing "pip cannot install the wheel for aarch64: see its message; is the package index in reach?"
        rm -rf "$home"/site/edgeadv*
        printf '%s\n' "$wanted" >"$home/wanted"
    fi
    "$python" -m pip install --target "$home/own" "${for_arm[@]}" --no-deps "$wheel" || missing "the wheel cannot be installed"
}

# a Python of its own: of the environment here, only the path and the number of threads are passed on. PYTHONSAFEPATH, or
# `-m` in the checkout would take the checkout instead of the wheel
emulated() {
    env -i PATH="$PATH" HOME="$home" LANG=C.UTF-8 NO_COLOR=1 COLUMNS=200 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" \
        QEMU_CPU="$cpu" PYTHONSAFEPATH=1 PYTHONHOME="$home/root/usr" PYTHONPATH="$home/own:$home/site" \
        "$qemu" -L "$home/root" "$home/root/usr/bin/python$python_version" "$@"
}

make_bundle() {
    bundle=$home/digits.edgeadv
    [ ! -f "$bundle/manifest.json" ] || return 0
    say "training and exporting a small network of digits on this machine"
    local command=(env PYTHONPATH="$checkout:$checkout/export:$checkout/runtime" "$python" -m edgeadv)
    rm -rf "$home/run"
    if ! "${command[@]}" train --data mnist5k --arch timm/test_efficientnet --epochs 3 --out "$home/run" >"$home/bundle.log" 2>&1 ||
        ! "${command[@]}" export "$home/run" --precision fp32,fp16,int8 --out "$bundle" >>"$home/bundle.log" 2>&1; then
        tail -5 "$home/bundle.log" >&2
        missing "no bundle could be made with $python: give one as the argument, or set PYTHON to one with edgeadv[demo]"
    fi
}

[ -n "$bundle" ] || make_bundle
bundle=$(cd "$bundle" && pwd)
find_qemu
fetch "$home/root" "$python_suite" arm64 "python$python_version" libstdc++6
install_wheel

say "$("$qemu" --version | head -1), processor $cpu, on $(uname -m)"
status=0
say "python -m edgeadv verify $(basename "$bundle")"
emulated -m edgeadv verify "$bundle" || status=1
say "classifying its golden frames"
emulated "$checkout/scripts/arm64_check.py" "$bundle" || status=1
if [ "$status" = 0 ]; then say "everything agrees"; else say "FAILED" >&2; fi
exit "$status"
