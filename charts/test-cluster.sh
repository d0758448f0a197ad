# shellcheck shell=bash disable=SC2154,SC2016  # out is the caller's; the scripts are for other shells
# Sourced by charts/test: installs both charts into the cluster of KUBECONFIG, in a namespace of their own, and removes them.
# The custom resources stay. No operator is started here (replicas=0); the cluster suite and the demo do that.
ns=slipway-charts-test
operator=system:serviceaccount:$ns:slipway
release=(slipway charts/slipway --namespace "$ns" --values charts/slipway/ci/one-node-values.yaml --set "replicas=0,strategies.enabled=false")
may() { [ "$(kubectl auth can-i "$@" 2> /dev/null)" = yes ]; }
http_secret() { kubectl --namespace "$ns" get secret slipway-staging --output 'jsonpath={.data.http-secret}'; }
answers() {
  kubectl --namespace "$ns" run "asks-$RANDOM" --attach --rm --quiet --restart Never --image slipway.dev/debian-base:dev --labels "$1" --command -- \
    timeout 20 bash -c 'until exec 3<> /dev/tcp/$0/5000; do sleep 0.2; done; printf "GET /v2/ HTTP/1.0\r\n\r\n" >&3; cat <&3' \
    "slipway-staging.$ns.svc.cluster.local"
}
remove() {
  helm uninstall slipway --namespace "$ns" --wait > /dev/null 2>&1
  kubectl delete namespace "$ns" --ignore-not-found > /dev/null
}
trap 'rm -rf "$out"; remove' EXIT
remove
kubectl create namespace "$ns" > /dev/null

kubectl get crd ocirecipes.slipway.dev > "$out/said" 2>&1 ||
  check "the custom resources are installed" helm install slipway-crds charts/slipway-crds --namespace slipway-system --create-namespace
check "all six are established" kubectl wait --for condition=Established --timeout 30s crd/ocirecipes.slipway.dev crd/ocirecipebuilds.slipway.dev \
  crd/registrypushes.slipway.dev crd/buildstrategies.slipway.dev crd/clusterbuildstrategies.slipway.dev crd/registrypolicies.slipway.dev
check "the API server takes the strategies" kubectl apply --dry-run=server --filename <(kind values ClusterBuildStrategy)
for example in examples/*.yaml examples/strategies/*.yaml; do
  check "the API server takes $example" kubectl --namespace "$ns" apply --dry-run=server --filename "$example"
done
check "the API server takes everything-values" kubectl apply --dry-run=server --filename \
  <(helm template slipway charts/slipway --namespace "$ns" --values charts/slipway/ci/everything-values.yaml \
    --set "metrics.serviceMonitor.enabled=false,metrics.prometheusRule.enabled=false")

check "slipway is installed" helm install "${release[@]}"
check "staging becomes ready" kubectl --namespace "$ns" rollout status deployment/slipway-staging --timeout 60s
check "staging answers a pod by its Service's name" grep -q '200 OK' <(answers app.kubernetes.io/managed-by=slipway)
secret=$(http_secret)
check "slipway is upgraded" helm upgrade "${release[@]}" --set staging.log.level=info
check "an upgrade keeps staging's secret" same "$secret" "$(http_secret)"
check "staging becomes ready again" kubectl --namespace "$ns" rollout status deployment/slipway-staging --timeout 60s

for verb in get list watch create update patch delete; do
  check "the operator may not $verb Secrets" not may "$verb" secrets --all-namespaces --as "$operator"
  check "the operator may not $verb Secrets of its own namespace" not may "$verb" secrets --namespace "$ns" --as "$operator"
done
check "the operator may create pods" may create pods --namespace default --as "$operator"
check "the operator may write a build's status" may patch ocirecipebuilds.slipway.dev --subresource status --namespace default --as "$operator"
check "the operator may not write a recipe" not may patch ocirecipes.slipway.dev --namespace default --as "$operator"
check "the operator may renew its lease" may update leases.coordination.k8s.io/slipway --namespace "$ns" --as "$operator"
check "the operator may not touch another's lease" not may update leases.coordination.k8s.io/other --namespace "$ns" --as "$operator"
kubectl --namespace "$ns" create rolebinding editor --clusterrole edit --user editor > /dev/null
kubectl --namespace "$ns" create rolebinding viewer --clusterrole view --user viewer > /dev/null
check "an editor may create recipes" may create ocirecipes.slipway.dev --namespace "$ns" --as editor
check "a viewer may list builds" may list ocirecipebuilds.slipway.dev --namespace "$ns" --as viewer
check "a viewer may not create recipes" not may create ocirecipes.slipway.dev --namespace "$ns" --as viewer

check "one namespace: slipway is upgraded" helm upgrade "${release[@]}" --set "watchNamespace=$ns"
check "one namespace: the operator may create pods there" may create pods --namespace "$ns" --as "$operator"
check "one namespace: the operator may not create pods elsewhere" not may create pods --namespace default --as "$operator"
check "one namespace: the operator may read cluster strategies" may watch clusterbuildstrategies.slipway.dev --all-namespaces --as "$operator"
check "slipway is uninstalled" helm uninstall slipway --namespace "$ns" --wait
check "uninstalling leaves the custom resources" kubectl get crd ocirecipes.slipway.dev
