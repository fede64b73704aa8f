/* notebook: a person at a notebook as the GPU sees it: memory held for hours, hardly any work. */
#include <stdio.h>

#include "options.h"
#include "tenant.h"

int main(int argc, char **argv)
{
	struct tenant tenant = {0};
	struct holding held = {.touched = 256 << 10};
	uint64_t memory = 0, cells = 0;
	double seconds = 10, idle = 0.5;
	const struct option_row rows[] = {
		{"memory", OPTION_BYTES, &memory, "bytes to hold (four fifths of what is free)"},
		{"touch", OPTION_BYTES, &held.touched, "bytes of each 64 MiB that carry data (256Ki)"},
		{"idle", OPTION_NUMBER, &idle, "seconds between cells (0.5)"},
		{"seconds", OPTION_NUMBER, &seconds, "how long; 0: until SIGTERM (10)"},
		{"json", OPTION_FLAG, &tenant.json, "lines of JSON"},
	};
	options_read(argc, argv, "holds memory, idles, runs a cell now and then", rows, sizeof rows / sizeof rows[0]);
	tenant_stop_on_signals();
	tenant_open(&tenant, "notebook");
	holding_take(&tenant, &held, memory, 3);

	for (double start = now_seconds(); !tenant_stop && (seconds == 0 || now_seconds() - start < seconds); cells++) {
		tenant_spin(&tenant, NULL, 200);
		holding_verify_one(&tenant, &held, cells);
		sleep_seconds(idle);
	}
	int wrong = holding_verify(&tenant, &held);
	char text[160];
	size_t bytes = held.count * held.chunk_bytes;
	snprintf(text, sizeof text, "notebook: %llu cells, held %s, %llu regions verified, %llu wrong", (unsigned long long)cells,
	         human_bytes(bytes), (unsigned long long)tenant.verified, (unsigned long long)tenant.wrong);
	tenant_say(&tenant, "report", text, "\"limit\":%zu,\"held\":%zu,\"cells\":%llu,\"verified\":%llu,\"wrong\":%llu",
	           tenant.total, bytes, (unsigned long long)cells, (unsigned long long)tenant.verified,
	           (unsigned long long)tenant.wrong);
	holding_release(&tenant, &held);
	tenant_close(&tenant);
	return wrong || tenant.wrong;
}
