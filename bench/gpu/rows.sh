#!/usr/bin/env bash
# rows.sh ROW [ARGUMENT…]: one row of check.sh's table, which sets $build $kerf $tenants $socket $here $out and
# $simulated. The last line printed is the row's detail; exit 0 passed, 77 skipped, else failed.
set -u -o pipefail
: "${build:?}" "${kerf:?}" "${tenants:?}" "${socket:?}" "${here:?}" "${out:?}" "${simulated?}"

# slice MEMORY COMMAND…
slice() {
	local memory=$1
	shift
	"$kerf" run --socket "$socket" --memory "$memory" -- "$@"
}

# The suite that internal/node's readings must pass, on this machine's own root or on the profiles.
conformance() {
	local test=$build/test/nodetest name=TestRealNode
	[ -x "$test" ] || { echo "no $test in this build"; return 77; }
	[ -n "$simulated" ] && name=TestSimulatedNodes
	KERF_REAL_GPU=1 KERF_TEST_BUILD=$build "$test" -test.v -test.run "^$name\$" >"$out/nodetest.log" 2>&1 || {
		grep -A3 -e '--- FAIL' "$out/nodetest.log" | tail -n 5
		return 1
	}
	echo "$name: $(grep -c -e '--- PASS' "$out/nodetest.log") checks passed"
}

hog() { slice "$1" "$tenants/hog" --limit "$1"; }

# One tenant at its limit must not be felt by two others.
together() {
	local train serve bad=0
	slice 8Gi "$tenants/train" --seconds 8 --touch 4Mi & train=$!
	slice 4Gi "$tenants/serve" --seconds 8 & serve=$!
	slice 2Gi "$tenants/hog" --limit 2Gi --class linear,async,vmm || bad=1
	wait "$train" || bad=1
	wait "$serve" || bad=1
	[ "$bad" = 0 ] && echo "train and serve verified all their data beside a hog at its limit"
	return "$bad"
}

forkbomb() { slice 8Gi "$tenants/forkbomb" --processes 24 --parallel 4 --settle 10; }

crashes() {
	local how
	for how in kill segfault abort exit _exit; do
		slice "$1" "$tenants/crasher" --how "$how" --after 0.2
	done
	# The same slice again, whole: what the dead held is back.
	slice "$1" "$tenants/hog" --limit "$1" --class linear && echo "five deaths; afterwards a slice is whole again"
}

smi() {
	command -v nvidia-smi >/dev/null || { echo "no nvidia-smi on this machine"; return 77; }
	local total
	total=$(slice "$1" nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits) || return 1
	echo "nvidia-smi in a slice of $(($1 >> 20)) MiB says ${total//$'\n'/ } MiB"
	[ "$total" = $(($1 >> 20)) ]
}

# python_in BYTES PROGRAM ARGUMENT…
python_in() {
	local memory=$1 program=$2
	shift 2
	command -v python3 >/dev/null || { echo "no python3 on this machine"; return 77; }
	slice "$memory" python3 "$here/$program" "$@"
}

# PyTorch at its limit, with a neighbour that must not feel it.
torch_beside() {
	local train code detail
	slice 4Gi "$tenants/train" --seconds 20 & train=$!
	detail=$(python_in "$1" torch_check.py oom "$1")
	code=$?
	wait "$train" || { echo "$detail; the neighbour was harmed"; return 1; }
	echo "$detail; the neighbour's data too"
	return "$code"
}

# The engine that swaps over-committed tenants, against a plain copy of the same bytes to page-locked memory.
swap_speed() {
	local args=(--mib 4096 --least 90)
	[ -n "$simulated" ] && args=(--mib 128 --rounds 3)
	slice 6Gi "$tenants/swap-probe" "${args[@]}"
}

overhead() {
	local args=(--out "$out/overhead.json" --quick)
	[ -n "$simulated" ] && args+=(--simulate h200x8)
	"$kerf" bench run overhead "${args[@]}" && echo "in $out/overhead.json"
}

# Every tenant has gone: kerfd must hold no share.
after() {
	"$kerf" top --socket "$socket" --once
	"$kerf" top --socket "$socket" --once --json >"$out/top-after.json" || return 1
	grep -Eq '"shares":(null|\[\])' "$out/top-after.json" || { echo "shares are left, see $out/top-after.json"; return 1; }
	echo "no share is left"
}

"$@"
