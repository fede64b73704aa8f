/* train: a training job as the GPU sees it: weights held for its whole life, a batch copied in for each step,
 * one long sequence of kernels, now and then a checksum. Prints steps a second. */
#include <stdio.h>

#include "options.h"
#include "tenant.h"

struct train {
	struct tenant tenant;
	uint64_t memory, micros;
	double seconds;
	struct holding held;
	uint32_t *batch;   /* page-locked */
	CUdeviceptr input; /* where the batch goes */
	uint64_t steps;
};

enum { BATCH = 256 << 10, VERIFY_EVERY = 16 /* steps */ };

static void prepare_batches(struct train *train)
{
	void *batch;
	CU(&train->tenant, cuMemAllocHost_v2(&batch, BATCH));
	CU(&train->tenant, cuMemAlloc_v2(&train->input, BATCH));
	train->batch = batch;
}

static void drop_batches(struct train *train)
{
	CU(&train->tenant, cuMemFree_v2(train->input));
	CU(&train->tenant, cuMemFreeHost(train->batch));
}

static void step(struct train *train)
{
	struct tenant *tenant = &train->tenant;
	uint32_t seed = (uint32_t)(train->steps / VERIFY_EVERY);
	int verify = train->steps % VERIFY_EVERY == 0;
	if (verify) /* new data, so that old data cannot pass for it */
		tenant_pattern(train->batch, BATCH, seed);
	CU(tenant, cuMemcpyHtoDAsync_v2(train->input, train->batch, BATCH, NULL));
	tenant_spin(tenant, NULL, train->micros);
	CU(tenant, cuStreamSynchronize(NULL));
	if (verify) {
		tenant_verify(tenant, train->input, BATCH, seed);
		holding_verify_one(tenant, &train->held, seed);
	}
	train->steps++;
}

static void report(const struct train *train, double elapsed)
{
	const struct tenant *tenant = &train->tenant;
	double rate = elapsed > 0 ? (double)train->steps / elapsed : 0;
	char text[200];
	snprintf(text, sizeof text, "train: %llu steps, %.1f steps/s, held %s, %llu regions verified, %llu wrong",
	         (unsigned long long)train->steps, rate, human_bytes(train->held.count * train->held.chunk_bytes),
	         (unsigned long long)tenant->verified, (unsigned long long)tenant->wrong);
	tenant_say(tenant, "report", text,
	           "\"limit\":%zu,\"held\":%zu,\"steps\":%llu,\"steps_per_second\":%.2f,\"verified\":%llu,\"wrong\":%llu",
	           tenant->total, train->held.count * train->held.chunk_bytes, (unsigned long long)train->steps, rate,
	           (unsigned long long)tenant->verified, (unsigned long long)tenant->wrong);
}

int main(int argc, char **argv)
{
	struct train train = {.seconds = 10, .micros = 500, .held.touched = 256 << 10};
	const struct option_row rows[] = {
		{"memory", OPTION_BYTES, &train.memory, "bytes to hold (four fifths of what is free)"},
		{"touch", OPTION_BYTES, &train.held.touched, "bytes of each 64 MiB that carry data (256Ki)"},
		{"step", OPTION_COUNT, &train.micros, "microseconds of GPU time a step (500)"},
		{"seconds", OPTION_NUMBER, &train.seconds, "how long; 0: until SIGTERM (10)"},
		{"json", OPTION_FLAG, &train.tenant.json, "lines of JSON"},
	};
	options_read(argc, argv, "holds weights, runs steps, verifies them", rows, sizeof rows / sizeof rows[0]);
	tenant_stop_on_signals();
	tenant_open(&train.tenant, "train");
	prepare_batches(&train);
	holding_take(&train.tenant, &train.held, train.memory, 1);

	double start = now_seconds();
	while (!tenant_stop && (train.seconds == 0 || now_seconds() - start < train.seconds))
		step(&train);
	double elapsed = now_seconds() - start;
	int wrong = holding_verify(&train.tenant, &train.held);
	report(&train, elapsed);
	holding_release(&train.tenant, &train.held);
	drop_batches(&train);
	tenant_close(&train.tenant);
	return wrong || train.tenant.wrong;
}
