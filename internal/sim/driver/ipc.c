/* ipc.c: cuIpc*: memory of another process by a handle that may travel anyhow. The opener reaches the bytes by
 * the exporter's descriptor in /proc, so both must be of one user and one pid namespace, and the exporter alive. */
#define _GNU_SOURCE
#include "sim.h"
#include "share.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct handle { /* 64 bytes */
	uint32_t magic;
	int32_t pid;
	int32_t fd;
	uint32_t reserved;
	uint8_t uuid[16];
	uint64_t offset, span;      /* the granules that hold it, in the exporter's file */
	uint64_t inner, size;       /* the allocation in them */
};
#define MAGIC 0x4350494bu /* "KIPC" */
_Static_assert(sizeof(struct handle) == sizeof(CUipcMemHandle), "handle");

CUresult cuIpcGetMemHandle(CUipcMemHandle *pHandle, CUdeviceptr dptr)
{
	struct span s;
	CUcontext c;
	REQUIRE(pHandle, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	pthread_mutex_lock(&g.lock);
	bool ok = addr_find(dptr, &s) && (s.range->kind == R_LINEAR || s.range->kind == R_BLOCK);
	if (ok) {
		const struct range *r = s.range;
		struct handle h = { .magic = MAGIC, .pid = getpid(), .fd = r->phys->fd, .offset = r->phys->offset, .span = r->span,
		                    .inner = s.base - r->base, .size = s.size };
		memcpy(h.uuid, r->dev->uuid, sizeof h.uuid);
		memcpy(pHandle, &h, sizeof h);
	}
	pthread_mutex_unlock(&g.lock);
	return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static int reach(const struct handle *h)
{
	char path[64], target[64] = "";
	snprintf(path, sizeof path, "/proc/%d/fd/%d", h->pid, h->fd);
	if (readlink(path, target, sizeof target - 1) < 0 || strncmp(target, "/memfd:kerf-sim-", 16) != 0)
		return -1;
	return open(path, O_RDWR | O_CLOEXEC);
}

/* Under g.lock. */
static CUresult open_handle(CUcontext c, const struct handle *h, CUdeviceptr *out)
{
	CUresult err;
	struct simdev *d = NULL;
	for (int i = 0; i < g.ndev; i++)
		if (memcmp(g.dev[i].uuid, h->uuid, sizeof h->uuid) == 0)
			d = &g.dev[i];
	REQUIRE(d, CUDA_ERROR_INVALID_DEVICE);
	int fd = reach(h);
	REQUIRE(fd >= 0, CUDA_ERROR_MAP_FAILED);
	struct phys *p = share_adopt(d, fd, h->offset, h->span);
	close(fd);
	REQUIRE(p, CUDA_ERROR_OUT_OF_MEMORY);
	struct range *r = range_adopt(d, c, R_IPC, p, 0, h->span, &err);
	if (!r)
		return err;
	r->size = h->inner + h->size;
	r->flags = (unsigned)h->inner;
	*out = r->base + h->inner;
	return CUDA_SUCCESS;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags)
{
	struct handle h;
	CUcontext c;
	memcpy(&h, &handle, sizeof h);
	REQUIRE(pdptr && Flags == CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, CUDA_ERROR_INVALID_VALUE);
	TRY(current(&c));
	REQUIRE(h.magic == MAGIC && h.span && h.inner <= h.span && h.size <= h.span - h.inner, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(h.pid != getpid(), CUDA_ERROR_INVALID_CONTEXT); /* not in the process that made it */
	REQUIRE(!g.zero_cost, CUDA_ERROR_NOT_SUPPORTED);
	pthread_mutex_lock(&g.lock);
	CUresult r = open_handle(c, &h, pdptr);
	pthread_mutex_unlock(&g.lock);
	return r;
}

CUresult cuIpcOpenMemHandle(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags) { return cuIpcOpenMemHandle_v2(pdptr, handle, Flags); }

CUresult cuIpcCloseMemHandle(CUdeviceptr dptr)
{
	struct span s;
	CUcontext c;
	TRY(current(&c));
	pthread_mutex_lock(&g.lock);
	bool ok = addr_find(dptr, &s) && s.range->kind == R_IPC && dptr == s.base + s.range->flags;
	if (ok) {
		wait_idle_context(c);
		range_free(s.range);
	}
	pthread_mutex_unlock(&g.lock);
	return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuIpcGetEventHandle(CUipcEventHandle *pHandle, CUevent event)
{
	TRY(ready());
	REQUIRE(pHandle && is_kind(event, K_EVENT), CUDA_ERROR_INVALID_VALUE);
	return CUDA_ERROR_NOT_SUPPORTED; /* CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED says so */
}

CUresult cuIpcOpenEventHandle(CUevent *phEvent, CUipcEventHandle handle)
{
	(void)handle;
	TRY(ready());
	REQUIRE(phEvent, CUDA_ERROR_INVALID_VALUE);
	return CUDA_ERROR_NOT_SUPPORTED;
}
