/* crowd: threads of one process that keep the GPU busy, each with a stream of its own, until SIGTERM. */
#define _GNU_SOURCE
#define KERNELS_PTX "../../internal/cuda/kernels.ptx"
#include "bench/tenants/tenant.c"
#include "bench/tenants/options.c"

#include <pthread.h>

enum { CROWD = 3, KERNEL_US = 500, AHEAD = 16 };

static struct tenant tenant;

static void *work(void *unused)
{
	CUstream stream;

	(void)unused;
	CU(&tenant, cuCtxSetCurrent(tenant.context));
	CU(&tenant, cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	while (!tenant_stop) {
		for (int i = 0; i < AHEAD; i++)
			tenant_spin(&tenant, stream, KERNEL_US);
		CU(&tenant, cuStreamSynchronize(stream));
	}
	return NULL;
}

int main(void)
{
	pthread_t thread[CROWD];

	tenant_stop_on_signals();
	tenant_open(&tenant, "crowd");
	for (int i = 0; i < CROWD; i++)
		if (pthread_create(&thread[i], NULL, work, NULL))
			return 1;
	for (int i = 0; i < CROWD; i++)
		pthread_join(thread[i], NULL);
	tenant_close(&tenant);
	return 0;
}
