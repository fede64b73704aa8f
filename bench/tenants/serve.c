/* serve: an inference server as the GPU sees it: a model held, then bursts of short kernels with pauses
 * between. Prints the latency of a request, p50 and p99. */
#include <stdio.h>
#include <stdlib.h>

#include "options.h"
#include "tenant.h"

enum { KEPT = 1 << 16 }; /* latencies kept: the last ones */

struct serve {
	struct tenant tenant;
	uint64_t memory, micros, burst;
	double seconds, pause;
	struct holding held;
	double *latency;
	uint64_t requests;
};

static void request(struct serve *serve)
{
	struct tenant *tenant = &serve->tenant;
	double start = now_seconds();
	tenant_spin(tenant, NULL, serve->micros);
	CU(tenant, cuStreamSynchronize(NULL));
	serve->latency[serve->requests++ % KEPT] = now_seconds() - start;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* Nearest rank; in microseconds. */
static double percentile(const double *sorted, size_t count, double p)
{
	if (count == 0)
		return 0;
	size_t rank = (size_t)(p / 100 * (double)count + 0.999999);
	return sorted[rank ? rank - 1 : 0] * 1e6;
}

static void report(struct serve *serve)
{
	const struct tenant *tenant = &serve->tenant;
	size_t count = serve->requests < KEPT ? serve->requests : KEPT;
	qsort(serve->latency, count, sizeof *serve->latency, by_size);
	double p50 = percentile(serve->latency, count, 50), p99 = percentile(serve->latency, count, 99);
	char text[200];
	snprintf(text, sizeof text, "serve: %llu requests, p50 %.0f µs, p99 %.0f µs, held %s, %llu regions verified, %llu wrong",
	         (unsigned long long)serve->requests, p50, p99, human_bytes(serve->held.count * serve->held.chunk_bytes),
	         (unsigned long long)tenant->verified, (unsigned long long)tenant->wrong);
	tenant_say(tenant, "report", text,
	           "\"limit\":%zu,\"held\":%zu,\"requests\":%llu,\"p50_us\":%.1f,\"p99_us\":%.1f,\"verified\":%llu,\"wrong\":%llu",
	           tenant->total, serve->held.count * serve->held.chunk_bytes, (unsigned long long)serve->requests, p50, p99,
	           (unsigned long long)tenant->verified, (unsigned long long)tenant->wrong);
}

int main(int argc, char **argv)
{
	struct serve serve = {.seconds = 10, .micros = 100, .burst = 8, .pause = 0.02, .held.touched = 256 << 10};
	const struct option_row rows[] = {
		{"memory", OPTION_BYTES, &serve.memory, "bytes to hold (four fifths of what is free)"},
		{"touch", OPTION_BYTES, &serve.held.touched, "bytes of each 64 MiB that carry data (256Ki)"},
		{"request", OPTION_COUNT, &serve.micros, "microseconds of GPU time a request (100)"},
		{"burst", OPTION_COUNT, &serve.burst, "requests in a burst (8)"},
		{"pause", OPTION_NUMBER, &serve.pause, "seconds between bursts (0.02)"},
		{"seconds", OPTION_NUMBER, &serve.seconds, "how long; 0: until SIGTERM (10)"},
		{"json", OPTION_FLAG, &serve.tenant.json, "lines of JSON"},
	};
	options_read(argc, argv, "answers bursts of short requests, measures their latency", rows, sizeof rows / sizeof rows[0]);
	serve.latency = malloc(KEPT * sizeof *serve.latency);
	if (!serve.latency) {
		fprintf(stderr, "serve: out of host memory\n");
		return 1;
	}
	tenant_stop_on_signals();
	tenant_open(&serve.tenant, "serve");
	holding_take(&serve.tenant, &serve.held, serve.memory, 2);

	double start = now_seconds();
	for (size_t turn = 0; !tenant_stop && (serve.seconds == 0 || now_seconds() - start < serve.seconds); turn++) {
		for (uint64_t i = 0; i < serve.burst; i++)
			request(&serve);
		holding_verify_one(&serve.tenant, &serve.held, turn);
		sleep_seconds(serve.pause);
	}
	int wrong = holding_verify(&serve.tenant, &serve.held);
	report(&serve);
	holding_release(&serve.tenant, &serve.held);
	tenant_close(&serve.tenant);
	free(serve.latency);
	return wrong || serve.tenant.wrong;
}
