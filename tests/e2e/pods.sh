#!/usr/bin/env bash
# Real containers through the whole line: kubectl, API server, scheduler, kubelet, runtime. Needs root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tests/e2e/lib/cluster.sh

busybox_archive "$work/bb.tar"
expect "imported docker.io/library/bb:1" "$coracle" image import "$work/bb.tar" --data-dir "$work/data"
up_cluster --node-name n1 --kubelet-port 0 --cgroup-root "/cot-$$"
eventually "True" k get node n1 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'

expect "pod/p created" k run p --image=bb:1 --restart=Never -- sh -c 'echo hello; sleep 1000'
eventually "Running" k get pod p -o 'jsonpath={.status.phase}'
expect "hello" k logs p
expect "from-inside" k exec p -- echo from-inside
expect "typed" k exec -i p -- cat <<<typed
expect "exit code 3" k_fails exec p -- sh -c 'exit 3'

expect "deployment.apps/web created" k create deployment web --image=bb:1 --replicas=2 -- sh -c 'trap exit TERM; while :; do sleep 1 & wait; done'
eventually "2" k get deployment web -o 'jsonpath={.status.readyReplicas}'
expect "job.batch/j created" k create job j --image=bb:1 -- true
eventually "1" k get job j -o 'jsonpath={.status.succeeded}'

# The control plane dies; containers do not.
before=$(k get pod p -o 'jsonpath={.status.containerStatuses[0].containerID}')
crash_cluster
up_cluster --node-name n1 --kubelet-port 0 --cgroup-root "/cot-$$"
eventually "from-inside" k exec p -- echo from-inside
expect "$before" k get pod p -o 'jsonpath={.status.containerStatuses[0].containerID}'

expect 'pod "p" deleted' k delete pod p --grace-period=1 --timeout=60s
expect 'deployment.apps "web" deleted' k delete deployment web
expect 'job.batch "j" deleted' k delete job j
eventually "" k get pods -o name
