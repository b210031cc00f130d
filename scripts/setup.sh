#!/usr/bin/env bash
# Installs what is missing to build, test or benchmark ringmill, and nothing else.
#
#   scripts/setup.sh build|test|bench
#
# Each group contains the ones before it. On Debian 12 and later missing system packages come from
# apt, as root or through sudo; every step is announced before it is taken, and where nothing is
# missing nothing is run. A missing Rust toolchain comes from rustup, into the user's own home.
#
# What the build cannot do without is an error; all else is a warning: without libhwloc the build
# goes on with --no-default-features (the machine is then read from /sys), and a test whose peer is
# missing says that it was skipped.
set -euo pipefail

# Same as rust-version in Cargo.toml.
readonly RUST_MINOR_MIN=88

# package:probe. A probe is "cmd NAME" (a program) or "pkg NAME" (a pkg-config module).
readonly REQUIRED=(
  "gcc:cmd cc"
  "libc6-dev:header stdio.h"
)
readonly BUILD=(
  "pkg-config:cmd pkg-config"
  "libhwloc-dev:pkg hwloc"
  "libudev-dev:pkg libudev"
)
# Real peers and network tools of the end-to-end tests.
readonly TEST=(
  "socat:cmd socat"
  "ncat:cmd ncat"
  "sockperf:cmd sockperf"
  "iperf3:cmd iperf3"
  "iproute2:cmd ip"
  "nftables:cmd nft"
  "procps:cmd ps"
)
# The benchmark scripts also read JSON and the CPU counters.
readonly BENCH=(
  "jq:cmd jq"
  "python3:cmd python3"
  "util-linux:cmd taskset"
)

say() { printf 'setup: %s\n' "$*"; }
warn() { printf 'setup: warning: %s\n' "$*" >&2; }
die() {
  printf 'setup: error: %s\n' "$*" >&2
  exit 1
}

# present "cmd NAME" | "pkg NAME" | "header NAME"
present() {
  case $1 in
    cmd\ *) command -v "${1#cmd }" >/dev/null 2>&1 ;;
    pkg\ *) command -v pkg-config >/dev/null 2>&1 && pkg-config --exists "${1#pkg }" ;;
    header\ *)
      # A program that does not even find its C compiler has no headers either.
      command -v cc >/dev/null 2>&1 && echo "#include <${1#header }>" | cc -E -x c - >/dev/null 2>&1
      ;;
  esac
}

# missing_of ENTRY...: the packages whose probe fails, one a line.
missing_of() {
  local entry
  for entry in "$@"; do
    present "${entry#*:}" || printf '%s\n' "${entry%%:*}"
  done
}

# The words to put before a command that needs root; fails where there is no way to be root.
as_root_prefix() {
  if [ "$(id -u)" -eq 0 ]; then
    echo "env"
  elif command -v sudo >/dev/null 2>&1; then
    # Without a terminal nobody can answer sudo's question: ask only whether it needs one.
    if [ -t 0 ] || sudo -n true 2>/dev/null; then
      echo "sudo env"
    else
      return 1
    fi
  else
    return 1
  fi
}

# install_packages PACKAGE...: 0 when all are installed; otherwise says why not.
install_packages() {
  local prefix
  if ! command -v apt-get >/dev/null 2>&1; then
    warn "no apt-get on this system; install the equivalent of: $*"
    return 1
  fi
  if ! prefix=$(as_root_prefix); then
    warn "not root and no usable sudo; ask an administrator for: apt-get install $*"
    return 1
  fi
  local -a run
  read -r -a run <<<"$prefix DEBIAN_FRONTEND=noninteractive apt-get"
  say "missing system packages: $*"
  say "running: ${run[*]} update"
  "${run[@]}" -qq update || warn "apt-get update failed; trying with the package lists at hand"
  say "running: ${run[*]} install -y --no-install-recommends $*"
  "${run[@]}" -qq install -y --no-install-recommends "$@" >/dev/null && return 0
  # One package that this release does not have must not keep the others out.
  local package failed=""
  for package in "$@"; do
    "${run[@]}" -qq install -y --no-install-recommends "$package" >/dev/null || failed+=" $package"
  done
  [ -z "$failed" ] && return 0
  warn "apt-get could not install:$failed (its messages are above)"
  return 1
}

rust_is_new_enough() {
  local version minor
  command -v cargo >/dev/null 2>&1 && version=$(rustc --version 2>/dev/null) || return 1
  minor=${version#rustc 1.}
  minor=${minor%%.*}
  [[ $minor =~ ^[0-9]+$ ]] && [ "$minor" -ge "$RUST_MINOR_MIN" ]
}

setup_rust() {
  PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  rust_is_new_enough && return 0
  if command -v cargo >/dev/null 2>&1; then
    say "$(rustc --version 2>/dev/null || echo 'the Rust compiler') is older than 1.$RUST_MINOR_MIN, which ringmill needs"
  else
    say "no Rust toolchain found; ringmill needs 1.$RUST_MINOR_MIN or newer"
  fi
  if ! command -v rustup >/dev/null 2>&1; then
    local -a fetcher=()
    present "cmd curl" || fetcher+=(curl)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || fetcher+=(ca-certificates)
    [ ${#fetcher[@]} -eq 0 ] || install_packages "${fetcher[@]}" ||
      die "curl is needed to fetch rustup; or install Rust 1.$RUST_MINOR_MIN yourself from https://rustup.rs and try again"
    say "running the installer of https://rustup.rs (minimal profile, into ${CARGO_HOME:-$HOME/.cargo}; shell profiles stay untouched)"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
      sh -s -- -y --quiet --no-modify-path --profile minimal --component rustfmt,clippy --default-toolchain stable ||
      die "rustup could not be installed; install Rust 1.$RUST_MINOR_MIN or newer yourself from https://rustup.rs and try again"
  else
    say "running: rustup toolchain install stable --profile minimal, then rustup default stable"
    rustup toolchain install stable --profile minimal --component rustfmt,clippy &&
      rustup default stable ||
      die "rustup could not install a newer toolchain"
  fi
  hash -r
  rust_is_new_enough || die "Rust is still older than 1.$RUST_MINOR_MIN or not on PATH: $(command -v rustc || echo 'no rustc')"
}

main() {
  local group=${1:-build}
  local -a wanted=("${BUILD[@]}")
  case $group in
    build) ;;
    test) wanted+=("${TEST[@]}") ;;
    bench) wanted+=("${TEST[@]}" "${BENCH[@]}") ;;
    *) die "unknown group '$group'; use build, test or bench" ;;
  esac

  local -a missing
  mapfile -t missing < <(missing_of "${REQUIRED[@]}" "${wanted[@]}")
  if [ ${#missing[@]} -gt 0 ] && ! install_packages "${missing[@]}"; then
    mapfile -t missing < <(missing_of "${REQUIRED[@]}")
    [ ${#missing[@]} -eq 0 ] || die "cannot build without: ${missing[*]}"
  fi

  mapfile -t missing < <(missing_of "${BUILD[@]}")
  [ ${#missing[@]} -eq 0 ] ||
    warn "still missing: ${missing[*]}; building with --no-default-features, so the machine is read from /sys instead of libhwloc"
  if [ "$group" != build ]; then
    mapfile -t missing < <(missing_of "${wanted[@]:${#BUILD[@]}}")
    [ ${#missing[@]} -eq 0 ] || warn "still missing: ${missing[*]}; what needs them will be skipped, and will say so"
  fi

  setup_rust
}

main "$@"
