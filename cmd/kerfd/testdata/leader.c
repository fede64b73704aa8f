/* leader: the main thread ends, and another thread goes on with GPU memory in hand. That is a living process. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "internal/cuda/cuabi.h"

static void *work(void *arg)
{
	CUdevice device;
	CUcontext context;
	CUdeviceptr p;
	(void)arg;
	sleep(1); /* the main thread has ended by then, and this thread attaches */
	if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&context, device) || cuCtxSetCurrent(context) || cuMemAlloc_v2(&p, 512 << 20))
		_exit(3);
	puts("holding");
	fflush(stdout);
	sleep(60);
	return NULL;
}

int main(void)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, work, NULL))
		return 2;
	pthread_exit(NULL);
}
