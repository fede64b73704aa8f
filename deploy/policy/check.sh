#!/bin/sh
# Asks a cluster in which Kerf is installed to refuse what its policies must refuse, and to take what is right. Nothing is made: all
# requests are dry runs. usage: check.sh [KUBECTL AND ITS ARGUMENTS]
set -u
kubectl=${*:-kubectl}
node=$($kubectl get nodes -o jsonpath='{.items[0].metadata.name}') || exit 1
api='"apiVersion": "resource.k8s.io/v1"'
wrong=$(mktemp)
trap 'rm -f "$wrong"' EXIT

# try WHAT WANT ARGUMENTS: the object is on standard input; WANT is part of the refusal, or "taken".
try() {
    what=$1 want=$2
    shift 2
    answer=$($kubectl create --dry-run=server -f - "$@" 2>&1) && answer=taken
    case $answer in
    *"$want"*) echo "ok    $what" ;;
    *) echo "WRONG $what: want \"$want\", got: $answer" | tee -a "$wrong" ;;
    esac
}

# rule SELECTOR EFFECT
rule() {
    echo "{$api, \"kind\": \"DeviceTaintRule\", \"metadata\": {\"name\": \"check\"}, \"spec\": {\"deviceSelector\": {$1}, \"taint\": {\"key\": \"example.com/check\", \"effect\": \"$2\"}}}"
}

rule '' NoExecute | try "a taint rule for everything" "an empty deviceSelector is every device"
rule '' None | try "a taint rule for everything that only looks" taken
rule '"driver": "gpu.kerf.dev"' NoExecute | try "a taint rule for our driver" taken

# config KIND DRIVER PARAMETERS
config() {
    config="[{\"opaque\": {\"driver\": \"$2\", \"parameters\": $3}}]"
    devices="{\"devices\": {\"requests\": [{\"name\": \"gpu\", \"exactly\": {\"deviceClassName\": \"gpu-shared\"}}], \"config\": $config}}"
    case $1 in
    DeviceClass) spec="{\"config\": $config}" ;;
    ResourceClaim) spec=$devices ;;
    ResourceClaimTemplate) spec="{\"spec\": $devices}" ;;
    esac
    echo "{$api, \"kind\": \"$1\", \"metadata\": {\"name\": \"check\"}, \"spec\": $spec}"
}

share() { echo "{\"apiVersion\": \"gpu.kerf.dev/v1alpha1\", \"kind\": \"ShareConfig\"${1:+, $1}}"; }

for kind in ResourceClaim ResourceClaimTemplate DeviceClass; do
    config $kind gpu.kerf.dev "$(share '"memoryLimit": "24Gi", "burst": false')" | try "$kind: a good configuration" taken
    config $kind gpu.kerf.dev "$(share '')" | try "$kind: an empty configuration" taken
    config $kind gpu.kerf.dev "$(share '"memorylimit": "24Gi"')" | try "$kind: an unknown field" "unknown field"
    config $kind gpu.kerf.dev "$(share '"memoryLimit": "24Q"')" | try "$kind: no quantity" "memoryLimit must be"
    config $kind gpu.kerf.dev "$(share '"class": "gold"')" | try "$kind: no class" "class must be"
    config $kind gpu.kerf.dev '{"apiVersion": "gpu.kerf.dev/v9", "kind": "ShareConfig"}' | try "$kind: another version" "apiVersion or kind"
    config $kind gpu.example.com '{"apiVersion": "example.com/v1", "kind": "Anything", "class": "gold"}' | try "$kind: of another driver" taken
done

# slice NODES POOL DRIVER
slice() {
    echo "{$api, \"kind\": \"ResourceSlice\", \"metadata\": {\"name\": \"check\"}, \"spec\": {\"driver\": \"$3\", $1, \"pool\": {\"name\": \"$2\", \"generation\": 1, \"resourceSliceCount\": 1}}}"
}

# kerfd's token, as its pod on $node has it; and without the node, as one that was made for no pod.
kerfd="--as=system:serviceaccount:kerf-system:kerfd"
token="--as-user-extra=authentication.kubernetes.io/node-name=$node"
its="\"nodeName\": \"$node\""
some='"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}'
slice "$its" "$node" gpu.kerf.dev | try "kerfd: a slice of its node" taken "$kerfd" "$token"
slice '"nodeName": "another"' "$node" gpu.kerf.dev | try "kerfd: a slice of another node" "a slice for node another" "$kerfd" "$token"
slice '"allNodes": true' "$node" gpu.kerf.dev | try "kerfd: a slice for all nodes" "more than one node" "$kerfd" "$token"
slice "$some" "$node" gpu.kerf.dev | try "kerfd: a slice for selected nodes" "more than one node" "$kerfd" "$token"
slice "$its" another gpu.kerf.dev | try "kerfd: another pool" "pool another" "$kerfd" "$token"
slice "$its" "$node" gpu.example.com | try "kerfd: another driver" "driver gpu.example.com" "$kerfd" "$token"
slice "$its" "$node" gpu.kerf.dev | try "kerfd: a token of no node" "the token names no node" "$kerfd"
slice '"allNodes": true' another gpu.example.com | try "an administrator: any slice" taken

# status WHAT WANT NODE PATCH: kerfd's token of a node patches the status of a claim that there is; from 1.36 on Kubernetes refuses too.
status() {
    answer=$($kubectl patch resourceclaim $claim --subresource=status --type=merge -p "$4" --dry-run=server "$kerfd" "--as-user-extra=authentication.kubernetes.io/node-name=$3" 2>&1) && answer=taken
    case $answer in
    *"$2"*) echo "ok    $1" ;;
    *) echo "WRONG $1: want \"$2\", got: $answer" | tee -a "$wrong" ;;
    esac
}

claim=$($kubectl get resourceclaims -A -o jsonpath='{range .items[*]}{.status.allocation.devices.results[0].driver} {.status.allocation.devices.results[0].pool} -n {.metadata.namespace} {.metadata.name}{"\n"}{end}' |
    sed -n "s/^gpu\.kerf\.dev $node //p" | head -n 1)
if [ -n "$claim" ]; then
    status "kerfd: who a claim is for" orbidden "$node" '{"status": {"reservedFor": [{"resource": "pods", "name": "check", "uid": "check"}]}}'
    status "kerfd: another node's claim" orbidden another '{"status": {"devices": []}}'
else
    echo "skip  kerfd: a claim's status (no claim has a GPU of node $node)"
fi

$kubectl get validatingadmissionpolicies -o jsonpath='{range .items[*]}{.metadata.name}{" "}{.status.typeChecking.expressionWarnings}{"\n"}{end}' |
    awk 'NF > 1 {print "WRONG type warnings of policy " $0}' | tee -a "$wrong"
test ! -s "$wrong"
