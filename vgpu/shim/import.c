/* import.c: memory that something else made. Another process's (CUDA IPC) is charged there, and counted here as
 * imported; memory of another API (Vulkan, OpenGL, NvSci) has no other account, so it is charged here, once.
 */
#include "shim.h"

CUresult on_ipc_open(real_on_ipc_open real, CUdeviceptr *p, CUipcMemHandle handle, unsigned int flags)
{
	CUresult r = real(p, handle, flags), why;
	struct book b = { .kind = BOOK_IPC };
	struct device *d;
	size_t n = 0;

	if (r)
		return r;
	d = kerf_current_device(&why);
	if (!d)
		return r;
	REAL(cuMemGetAddressRange_v2)(NULL, &n, *p);
	b.key = *p;
	b.ordinal = d->ordinal;
	b.bytes = n;
	b.context = kerf_current_context();
	if (book_put(&b)) /* fails open: a count, not a limit */
		kerf_add_imported(d, (int64_t)n);
	return r;
}

CUresult on_ipc_close(real_on_ipc_close real, CUdeviceptr p)
{
	struct book b;
	bool booked = book_take(BOOK_IPC, p, &b);
	CUresult r = real(p);

	if (booked && r)
		book_put(&b);
	else if (booked)
		kerf_add_imported(kerf_device(b.ordinal), -(int64_t)b.bytes);
	return r;
}

CUresult on_external_import(real_on_external_import real, CUexternalMemory *memory, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *desc)
{
	struct book b = { .kind = BOOK_EXTERNAL };
	struct device *d;
	CUresult r;

	if (!memory || !desc)
		return real(memory, desc);
	d = kerf_current_device(&r);
	if (!d)
		return r;
	b.bytes = kerf_physical(desc->size);
	r = kerf_charge(d, b.bytes);
	if (r)
		return r;
	r = real(memory, desc);
	if (r == CUDA_SUCCESS) {
		b.key = (uintptr_t)*memory;
		b.ordinal = d->ordinal;
		b.context = kerf_current_context();
		if (book_put(&b))
			return r;
		REAL(cuDestroyExternalMemory)(*memory);
		r = CUDA_ERROR_OUT_OF_MEMORY;
	}
	kerf_discharge(d, b.bytes);
	return r;
}

CUresult on_external_destroy(real_on_external_destroy real, CUexternalMemory memory)
{
	struct book b;
	bool booked = book_take(BOOK_EXTERNAL, (uintptr_t)memory, &b);
	CUresult r = real(memory);

	if (booked && r)
		book_put(&b);
	else if (booked)
		kerf_discharge(kerf_device(b.ordinal), b.bytes);
	return r;
}
