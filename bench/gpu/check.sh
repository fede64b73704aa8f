#!/usr/bin/env bash
# check.sh: Kerf on a real NVIDIA GPU, from a tree that is built already; no compiler, no network.
#
#   bench/gpu/check.sh [--simulated] [--out DIR] [BUILD]
#
# Starts a kerfd of its own, runs each row below, prints a table last. Exit: 0 all that ran passed, 1 a row
# failed, 2 there is no GPU (or no build). --simulated runs the rows that need no framework on a simulated
# node: that is how this script is tested. Every row has a time limit, and so have all together: 8 minutes.
# The card is taken as it is found: no clocks, no modes, no resets; managed memory only inside a slice.
set -u -o pipefail

here=$(cd "$(dirname "$0")" && pwd)
build=$here/../../build
simulated=
out=

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; }

while [ $# -gt 0 ]; do
	case $1 in
	--simulated) simulated=1 ;;
	--out) out=${2:?--out needs a directory}; shift ;;
	-h | --help) usage; exit 0 ;;
	-*) echo "check.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
	*) build=$1 ;;
	esac
	shift
done

# Opened, not looked for: the driver's libraries make the node even where there is no card.
if [ -z "$simulated" ] && ! { [ -c /dev/nvidiactl ] && (exec 3<>/dev/nvidiactl); } 2>/dev/null; then
	echo "gpu-check: no NVIDIA GPU here (/dev/nvidiactl does not open): nothing was checked; --simulated runs what needs no card"
	exit 2
fi
if [ ! -x "$build/bin/kerfd" ] || [ ! -x "$build/libexec/kerf/hog" ]; then
	echo "gpu-check: $build has no kerfd or no tenants: run 'make build' first" >&2
	exit 2
fi
build=$(cd "$build" && pwd)
out=${out:-$build/gpu-check}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)

run_dir=$(mktemp -d) || exit 2
socket=$run_dir/kerfd.sock
pids=()
began=$SECONDS

# shellcheck disable=SC2317  # called by the trap
finish() {
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
	wait
	rm -rf "$run_dir"
}
trap finish EXIT
trap 'exit 1' INT TERM

rows=()
failed=0
all=465 # seconds for all rows, so that the table is printed within 8 minutes

# row NAME SECONDS ROW [ARGUMENT…]: a function of rows.sh. Its last line is the detail, exit 77 skips.
row() {
	local name=$1 limit=$2 start=$SECONDS result
	shift 2
	echo "=== $name" >&2
	local left=$((all - SECONDS + began))
	[ "$left" -lt 1 ] && left=1
	[ "$limit" -gt "$left" ] && limit=$left
	timeout --kill-after=5 "$limit" "$here/rows.sh" "$@" </dev/null >"$out/$name.log" 2>&1
	local code=$?
	case $code in
	0) result=PASS ;;
	77) result=SKIP ;;
	124 | 137) result=FAIL; echo "over its $limit s" >>"$out/$name.log" ;;
	*) result=FAIL ;;
	esac
	[ $result = FAIL ] && { failed=1; tail -n 20 "$out/$name.log" >&2; }
	rows+=("$(printf '%-14s %-4s %4ss  %s' "$name" $result $((SECONDS - start)) "$(tail -n 1 "$out/$name.log" | cut -c1-150)")")
}

start_kerfd() {
	local args=(--run-dir "$run_dir")
	[ -n "$simulated" ] && args+=(--simulate h200x8)
	"$build/bin/kerfd" "${args[@]}" >"$out/kerfd.log" 2>&1 &
	pids+=($!)
	for _ in $(seq 300); do
		[ -S "$socket" ] && "$build/bin/kerf" top --socket "$socket" --once --json >"$out/top-before.json" 2>"$out/top.err" && return 0
		kill -0 "${pids[0]}" 2>/dev/null || break
		sleep 0.1
	done
	echo "gpu-check: kerfd did not start:" >&2
	tail -n 5 "$out/kerfd.log" "$out/top.err" >&2
	return 1
}

export kerf=$build/bin/kerf tenants=$build/libexec/kerf
export build here simulated out socket
four=$((4 << 30)) eight=$((8 << 30))

start_kerfd || exit 1
row conformance 60 conformance
row memory 60 hog "$four"
row together 60 together
row forkbomb 60 forkbomb
row crashes 60 crashes "$four"
row nvidia-smi 20 smi "$four"
if [ -z "$simulated" ]; then
	row torch-memory 60 python_in "$four" torch_check.py memory "$four"
	row torch-oom 60 torch_beside "$four"
	row torch-train 60 python_in "$eight" torch_check.py train
	row torch-graphs 60 python_in "$eight" torch_check.py graphs
	row jax 90 python_in "$eight" jax_check.py "$eight"
	row cupy 60 python_in "$four" cupy_check.py "$four"
else
	rows+=("$(printf '%-14s %-4s %4ss  %s' frameworks SKIP 0 "PyTorch, JAX and CuPy need a real GPU")")
fi
row swap 60 swap_speed
row overhead 150 overhead
row after 20 after

echo
[ -f "$out/overhead.log" ] && cat "$out/overhead.log"
echo
if [ -n "$simulated" ]; then echo "gpu-check on a SIMULATED GPU, $((SECONDS - began)) s"; else
	echo "gpu-check on $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo 'an unnamed GPU'), $((SECONDS - began)) s"
fi
printf '%s\n' "${rows[@]}"
exit $failed
