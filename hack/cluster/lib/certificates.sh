# shellcheck shell=bash
# One CA, one certificate per part, so that each is authorised (and shows up in the audit log) as itself.
# shellcheck disable=SC2154  # state, node, node_ip, api_ip come from the cluster script

certificates() {
  local pki=$state/pki
  openssl ecparam -name prime256v1 -genkey -noout -out "$pki/ca.key"
  openssl req -x509 -new -key "$pki/ca.key" -out "$pki/ca.crt" -subj /CN=slipway-cluster -days 365
  openssl genrsa -out "$pki/sa.key" 2048 2>/dev/null
  printf 'subjectAltName=IP:127.0.0.1,IP:%s,IP:%s,DNS:localhost,DNS:%s,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local\n' \
    "$api_ip" "$node_ip" "$node" > "$pki/names"
  certificate apiserver /CN=kube-apiserver
  certificate apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client
  certificate kubelet "/O=system:nodes/CN=system:node:$node"
  identity admin /O=system:masters/CN=admin
  identity kubelet
  identity controller-manager /CN=system:kube-controller-manager
  identity scheduler /CN=system:kube-scheduler
  identity proxy /CN=system:kube-proxy
  identity dns /O=system:masters/CN=coredns
}

certificate() {
  local file=$state/pki/$1
  openssl ecparam -name prime256v1 -genkey -noout -out "$file.key"
  openssl req -new -key "$file.key" -subj "$2" | openssl x509 -req -CA "$state/pki/ca.crt" -CAkey "$state/pki/ca.key" \
    -set_serial "0x$(openssl rand -hex 8)" -out "$file.crt" -days 365 -extfile "$state/pki/names" 2>/dev/null
}

# A certificate and the kubeconfig that uses it, with everything inside so that it can be copied away.
identity() {
  [ $# -eq 1 ] || certificate "$@"
  local file=$state/pki/$1 config=$state/etc/$1.kubeconfig
  [ "$1" != admin ] || config=$state/admin.kubeconfig
  (umask 077; cat > "$config" << END
apiVersion: v1
kind: Config
current-context: slipway
contexts: [{name: slipway, context: {cluster: slipway, user: $1}}]
clusters:
- name: slipway
  cluster:
    server: https://127.0.0.1:6443
    certificate-authority-data: $(base64 -w0 "$state/pki/ca.crt")
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 "$file.crt")
    client-key-data: $(base64 -w0 "$file.key")
END
  )
}
