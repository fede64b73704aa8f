/* spin: always has work for the GPU, queued ahead of it: what shares of GPU time are measured with. */
#include <stdio.h>
#include <unistd.h>

#include "options.h"
#include "tenant.h"

enum { AHEAD_MOST = 256 };

struct spin {
	struct tenant tenant;
	uint64_t micros, other, every, nodes, ahead;
	double seconds;
	CUstream stream;
	CUgraphExec exec;
	CUevent passed[AHEAD_MOST];
	uint64_t launches, micros_done;
};

static uint64_t length(const struct spin *spin, uint64_t i)
{
	return spin->every && i % spin->every == 0 ? spin->other : spin->micros;
}

/* A graph of so many kernels, as a program captures one. */
static void capture(struct spin *spin)
{
	struct tenant *tenant = &spin->tenant;
	CUgraph graph;
	CU(tenant, cuStreamBeginCapture_v2(spin->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
	for (uint64_t i = 0; i < spin->nodes; i++)
		tenant_spin(tenant, spin->stream, spin->micros);
	CU(tenant, cuStreamEndCapture(spin->stream, &graph));
	CU(tenant, cuGraphInstantiateWithFlags(&spin->exec, graph, 0));
	CU(tenant, cuGraphDestroy(graph));
}

static void launch_one(struct spin *spin)
{
	struct tenant *tenant = &spin->tenant;
	CUevent event = spin->passed[spin->launches % spin->ahead];
	if (spin->launches >= spin->ahead)
		CU(tenant, cuEventSynchronize(event));
	if (spin->exec)
		CU(tenant, cuGraphLaunch(spin->exec, spin->stream));
	else
		tenant_spin(tenant, spin->stream, length(spin, spin->launches));
	CU(tenant, cuEventRecord(event, spin->stream));
	spin->micros_done += spin->exec ? spin->nodes * spin->micros : length(spin, spin->launches);
	spin->launches++;
}

int main(int argc, char **argv)
{
	struct spin spin = {.seconds = 10, .micros = 500, .ahead = 32};
	const struct option_row rows[] = {
		{"kernel", OPTION_COUNT, &spin.micros, "microseconds of GPU time a kernel (500)"},
		{"other", OPTION_COUNT, &spin.other, "microseconds of every so-manieth kernel"},
		{"every", OPTION_COUNT, &spin.every, "which: 10 is each tenth; 0: none (0)"},
		{"graph", OPTION_COUNT, &spin.nodes, "launch a graph of so many kernels; 0: launch kernels (0)"},
		{"ahead", OPTION_COUNT, &spin.ahead, "launches queued ahead of the GPU (32)"},
		{"seconds", OPTION_NUMBER, &spin.seconds, "how long; 0: until SIGTERM (10)"},
		{"json", OPTION_FLAG, &spin.tenant.json, "lines of JSON"},
	};
	options_read(argc, argv, "keeps the GPU busy", rows, sizeof rows / sizeof rows[0]);
	if (spin.ahead < 1 || spin.ahead > AHEAD_MOST) {
		fprintf(stderr, "spin: --ahead: from 1 to %d\n", AHEAD_MOST);
		return 2;
	}
	struct tenant *tenant = &spin.tenant;
	tenant_stop_on_signals();
	tenant_open(tenant, "spin");
	CU(tenant, cuStreamCreate(&spin.stream, CU_STREAM_NON_BLOCKING));
	for (uint64_t i = 0; i < spin.ahead; i++)
		CU(tenant, cuEventCreate(&spin.passed[i], CU_EVENT_DISABLE_TIMING));
	if (spin.nodes)
		capture(&spin);
	tenant_say(tenant, "holding", "spin: ready", "\"pid\":%d", (int)getpid());

	double start = now_seconds();
	while (!tenant_stop && (spin.seconds == 0 || now_seconds() - start < spin.seconds))
		launch_one(&spin);
	CU(tenant, cuStreamSynchronize(spin.stream));
	double elapsed = now_seconds() - start;
	char text[160];
	snprintf(text, sizeof text, "spin: %llu launches, %.1f %% of %.1f s on the GPU", (unsigned long long)spin.launches,
	         (double)spin.micros_done / elapsed / 1e4, elapsed);
	tenant_say(tenant, "report", text, "\"pid\":%d,\"launches\":%llu,\"gpu_us\":%llu,\"seconds\":%.3f", (int)getpid(),
	           (unsigned long long)spin.launches, (unsigned long long)spin.micros_done, elapsed);
	tenant_close(tenant);
	return 0;
}
