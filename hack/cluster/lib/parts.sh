# shellcheck shell=bash
# Starting the cluster's parts in order, and asking each how it is.
# shellcheck disable=SC2154  # state, node, tools... come from the cluster script

start_all() {
  start etcd etcd --data-dir "$state/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync --log-level warn
  start containerd containerd -c "$state/etc/containerd.toml"
  start_apiserver
  await etcd part_healthy etcd   # before the apiserver, which would be blamed for it
  await containerd part_healthy containerd
  pause_image
  await apiserver part_healthy apiserver
  start controller-manager kube-controller-manager --kubeconfig "$state/etc/controller-manager.kubeconfig" \
    --service-account-private-key-file "$state/pki/sa.key" --root-ca-file "$state/pki/ca.crt" --use-service-account-credentials \
    --cluster-signing-cert-file "$state/pki/ca.crt" --cluster-signing-key-file "$state/pki/ca.key" \
    --leader-elect=false --kube-api-qps 100 --kube-api-burst 200
  start scheduler kube-scheduler --config "$state/etc/scheduler.yaml"
  start proxy kube-proxy --config "$state/etc/proxy.yaml"
  start dns coredns -conf "$state/etc/Corefile"
  start kubelet kubelet --config "$state/etc/kubelet.yaml" --kubeconfig "$state/etc/kubelet.kubeconfig" --hostname-override "$node" \
    --root-dir "$node_dir/kubelet" --node-ip "$node_ip"
  local part
  for part in "${parts[@]}"; do await "$part" part_healthy "$part"; done
  # No pod can be created before its namespace's account exists.
  await controller-manager admin get serviceaccount default
}

start_apiserver() {
  start apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --service-cluster-ip-range "$service_cidr" \
    --advertise-address "$node_ip" --endpoint-reconciler-type lease --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
    --allow-privileged --client-ca-file "$state/pki/ca.crt" \
    --tls-cert-file "$state/pki/apiserver.crt" --tls-private-key-file "$state/pki/apiserver.key" \
    --kubelet-client-certificate "$state/pki/apiserver-kubelet.crt" --kubelet-client-key "$state/pki/apiserver-kubelet.key" \
    --kubelet-certificate-authority "$state/pki/ca.crt" --kubelet-preferred-address-types InternalIP \
    --service-account-key-file "$state/pki/sa.key" --service-account-signing-key-file "$state/pki/sa.key" \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --audit-policy-file "$state/etc/audit.yaml" --audit-log-path "$state/log/audit.log" --audit-log-maxsize 500
}

# Every pod's sandbox needs it, and no registry has it.
pause_image() {
  local archive
  archive=$("$here/../images/build" --print pause 2> >(grep -v ' cached ' >&2))
  import "$archive"
}

admin() { kubectl --kubeconfig "$state/admin.kubeconfig" "$@"; }

part_healthy() {
  alive "$1" || return 1
  case $1 in
    etcd) answers http://127.0.0.1:2379/health ;;
    apiserver) admin get --raw /readyz ;;
    controller-manager) answers https://127.0.0.1:10257/healthz ;;
    scheduler) answers https://127.0.0.1:10259/healthz ;;
    containerd) "$tools/ctr" -a "$socket" version ;;
    kubelet) [ "$(admin get node "$node" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ] ;;
    proxy) answers http://127.0.0.1:10256/healthz ;;
    dns) answers http://127.0.0.1:8181/ready ;;
  esac > /dev/null 2>&1
}

answers() { curl -fsSk --noproxy '*' --max-time 2 "$1"; }
