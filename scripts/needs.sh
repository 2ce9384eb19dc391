# Sourced by the other scripts: installs what is missing on Debian and Ubuntu.

PATH=$PATH:/usr/sbin:/sbin

# Whether the machine has what a package is wanted for.
has() {
  case $1 in
    libseccomp-dev) pkg-config --exists libseccomp 2>/dev/null ;;
    python3-venv) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    busybox-static) [[ -x /bin/busybox ]] && ! ldd /bin/busybox >/dev/null 2>&1 ;;
    ca-certificates) [[ -e /etc/ssl/certs/ca-certificates.crt ]] ;;
    *) command -v "$2" >/dev/null ;;
  esac
}

# need PACKAGE[:COMMAND]...: installs each package whose command (or library) is absent, all in one go.
need() {
  local missing=() item
  for item; do
    has "${item%%:*}" "${item#*:}" || missing+=("${item%%:*}")
  done
  ((${#missing[@]})) || return 0
  if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]} (names as on Debian); install them and try again" >&2
    return 1
  fi
  if ((EUID != 0)); then
    echo "missing: run 'apt-get install --no-install-recommends ${missing[*]}' as root and try again" >&2
    return 1
  fi
  echo "installing ${missing[*]}"
  apt-get update -qq
  # Nothing here wants the services that packages bring: below run level 2 they are not started.
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_rust() {
  command -v cargo >/dev/null || [[ ! -e $HOME/.cargo/bin/cargo ]] || PATH=$PATH:$HOME/.cargo/bin
  if ! command -v cargo >/dev/null; then
    echo "missing: Rust (cargo); install it with rustup and try again" >&2
    return 1
  fi
}

# Where what is built and downloaded stays between runs.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/coracle
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
