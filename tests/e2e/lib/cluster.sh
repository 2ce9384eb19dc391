# A cluster of one test: its own directory, ports and cgroup, gone at the end whatever happens.
# Sourced by the scripts one folder up.

work=$(mktemp -d "${TMPDIR:-/tmp}/cot-e2e-XXXXXX")
coracle=${CORACLE:-${CARGO_TARGET_DIR:-target}/debug/coracle}
kubectl=${KUBECTL:-kubectl}
cluster=""
chmod 0755 "$work"

tear_down() {
  local result=$?
  trap - EXIT
  [[ -z $cluster ]] || kill "$cluster" 2>/dev/null || true
  [[ -z $cluster ]] || wait "$cluster" 2>/dev/null || true
  if ((result != 0)) && [[ -e $work/log ]]; then tail -n 40 "$work/log"; fi
  "$coracle" reset --yes --data-dir "$work/data" || true
  find /sys/fs/cgroup -depth -type d -path "*/cot-$$*" -exec rmdir {} + 2>/dev/null || true
  rm -rf --one-file-system "$work"
  exit "$result"
}
trap tear_down EXIT

# up_cluster FLAG...: starts it and waits until it says that it is ready.
up_cluster() {
  : >"$work/log"
  "$coracle" up --data-dir "$work/data" --secure-port 0 --write-kubeconfig "$work/kubeconfig" "$@" >>"$work/log" 2>&1 &
  cluster=$!
  local deadline=$((SECONDS + 60))
  until grep -q "coracle is ready" "$work/log"; do
    kill -0 "$cluster" 2>/dev/null || fail "the cluster ended"
    ((SECONDS < deadline)) || fail "the cluster is not ready after 60 s"
    sleep 0.05
  done
}

crash_cluster() {
  kill -9 "$cluster"
  wait "$cluster" 2>/dev/null || true
  cluster=""
}

k() {
  "$kubectl" --kubeconfig "$work/kubeconfig" --request-timeout=30s "$@" 2>&1
}

k_fails() {
  local output
  if output=$(k "$@"); then
    echo "$output"
    fail "should have failed: kubectl $*"
  fi
  echo "$output"
}

# expect TEXT COMMAND...: the command's output contains the text.
expect() {
  local text=$1 output result=0
  shift
  output=$("$@") || result=$?
  [[ $result == 0 && $output == *"$text"* ]] || fail "$* ($result) said:"$'\n'"$output"$'\n'"and not: $text"
}

# eventually TEXT COMMAND...: within a minute the command's output is the text (or contains it, if not empty).
eventually() {
  local text=$1 output="" deadline=$((SECONDS + 60))
  shift
  while ((SECONDS < deadline)); do
    output=$("$@" || true)
    if [[ -n $text && $output == *"$text"* ]] || [[ -z $text && -z $output ]]; then return; fi
    sleep 0.1
  done
  fail "$* still said after 60 s:"$'\n'"$output"$'\n'"and not: $text"
}

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# busybox_archive FILE: a docker archive named bb:1 made of Debian's static busybox.
busybox_archive() {
  local root=$work/image
  mkdir -p "$root"/rootfs/{bin,etc,tmp,proc,sys,dev} "$root/layer"
  cp "$(command -v busybox)" "$root/rootfs/bin/busybox"
  local applet
  for applet in $("$root/rootfs/bin/busybox" --list); do
    [[ $applet == busybox ]] || ln -sf busybox "$root/rootfs/bin/$applet"
  done
  echo 'root:x:0:0:root:/:/bin/sh' >"$root/rootfs/etc/passwd"
  tar -C "$root/rootfs" --numeric-owner --owner=0 --group=0 -cf "$root/layer/layer.tar" .
  local digest
  digest=$(sha256sum "$root/layer/layer.tar" | cut -d' ' -f1)
  printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$digest" >"$root/config.json"
  printf '[{"Config":"config.json","RepoTags":["bb:1"],"Layers":["layer/layer.tar"]}]' >"$root/manifest.json"
  tar -C "$root" -cf "$1" manifest.json config.json layer
}
