#!/usr/bin/env bash
# `coracle up --no-node` driven by an unmodified kubectl: objects, apply, access, controllers, restart.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tests/e2e/lib/cluster.sh

up_cluster --no-node

expect "namespace/a created" k create namespace a
expect "configmap/c created" k -n a create configmap c --from-literal=x=1
expect "already exists" k_fails -n a create configmap c --from-literal=x=1
expect 'configmaps "none" not found' k_fails -n a get configmap none
expect "1" k -n a get configmap c -o 'jsonpath={.data.x}'
expect "configmap/c labeled" k -n a label configmap c tier=web
expect "configmap/c" k -n a get configmap -l tier=web -o name
expect "configmap/c patched" k -n a patch configmap c --type=merge -p '{"data":{"y":"2"}}'
expect "configmap/c patched" k -n a patch configmap c --type=json -p '[{"op":"add","path":"/data/z","value":"3"}]'
expect "1 2 3" k -n a get configmap c -o 'jsonpath={.data.x} {.data.y} {.data.z}'
expect 'User "bob" cannot list resource "secrets"' k_fails -n a get secrets --as=bob
expect "no" k_fails auth can-i create pods --as=bob

cat >"$work/web.yaml" <<'YAML'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: a}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "web:1", ports: [{containerPort: 80}]}]}
YAML
expect "deployment.apps/web created" k apply -f "$work/web.yaml"
expect "deployment.apps/web unchanged" k apply -f "$work/web.yaml"
sed -i 's/web:1/web:2/' "$work/web.yaml"
expect "deployment.apps/web configured" k apply -f "$work/web.yaml"
expect "web:2" k -n a get deployment web -o 'jsonpath={.spec.template.spec.containers[0].image}'
expect "deployment.apps/web serverside-applied" k apply --server-side --force-conflicts -f "$work/web.yaml"
expect "deployment.apps/web scaled" k -n a scale deployment web --replicas=3
expect 'conflict' k_fails apply --server-side -f "$work/web.yaml"
# Without nodes no pod becomes ready: the new replica set surges by one and the old one stays.
eventually "4" k -n a get deployment web -o 'jsonpath={.status.replicas}'
expect "service/web exposed" k -n a expose deployment web --port=80
expect "10." k -n a get service web -o 'jsonpath={.spec.clusterIP}'
expect "Required value" k_fails -n a create -f - <<<'{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[]}}'
expect "custom resources are not supported" k_fails create -f - <<<'{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"as.b.c"},"spec":{"group":"b.c","names":{"kind":"A","plural":"as"},"scope":"Namespaced","versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}'
expect "FIELD: image <string>" k explain pod.spec.containers.image
expect "deployments" k api-resources --api-group=apps
expect "eyJ" k -n a create token default

# The same identities and objects after a crash.
crash_cluster
up_cluster --no-node
expect "web:2" k -n a get deployment web -o 'jsonpath={.spec.template.spec.containers[0].image}'
expect "deployment.apps \"web\" deleted" k -n a delete deployment web --cascade=foreground
expect "namespace \"a\" deleted" k delete namespace a --timeout=60s
expect 'namespaces "a" not found' k_fails get namespace a
