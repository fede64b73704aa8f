/* array.c: arrays and mipmapped arrays. The driver does not say what an array takes, except of one that takes
 * nothing: so a twin with deferred mapping is made, asked, and destroyed (CUDA 11.6 and later). Before that, and
 * where the device cannot, the size is computed from above: rows of 512 bytes' alignment.
 */
#include "shim.h"

#define NO_MEMORY (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING) /* memory comes by cuMemCreate */

typedef CUDA_ARRAY3D_DESCRIPTOR desc_t;

static unsigned element_bytes(CUarray_format format)
{
	switch (format) {
	case CU_AD_FORMAT_UNSIGNED_INT8:
	case CU_AD_FORMAT_SIGNED_INT8:
		return 1;
	case CU_AD_FORMAT_UNSIGNED_INT16:
	case CU_AD_FORMAT_SIGNED_INT16:
	case CU_AD_FORMAT_HALF:
		return 2;
	default: /* 32 bits, and packed formats, of which none has more per channel */
		return 4;
	}
}

static uint64_t computed(const desc_t *a)
{
	uint64_t row = (a->Width * a->NumChannels * element_bytes(a->Format) + 511) & ~511ull;

	return row * (a->Height ? a->Height : 1) * (a->Depth ? a->Depth : 1);
}

static uint64_t array_bytes(const desc_t *a, struct device *d)
{
	CUDA_ARRAY_MEMORY_REQUIREMENTS need = { 0 };
	desc_t twin = *a;
	CUarray array;

	if (a->Flags & NO_MEMORY)
		return 0;
	twin.Flags |= CUDA_ARRAY3D_DEFERRED_MAPPING;
	if (REAL(cuArrayGetMemoryRequirements) && !REAL(cuArray3DCreate_v2)(&array, &twin)) {
		REAL(cuArrayGetMemoryRequirements)(&need, array, d->ordinal);
		REAL(cuArrayDestroy)(array);
	}
	return kerf_physical(need.size ? need.size : computed(a));
}

static uint64_t mipmap_bytes(const desc_t *a, unsigned levels, struct device *d)
{
	CUDA_ARRAY_MEMORY_REQUIREMENTS need = { 0 };
	desc_t twin = *a;
	CUmipmappedArray array;

	if (a->Flags & NO_MEMORY)
		return 0;
	twin.Flags |= CUDA_ARRAY3D_DEFERRED_MAPPING;
	if (REAL(cuMipmappedArrayGetMemoryRequirements) && !REAL(cuMipmappedArrayCreate)(&array, &twin, levels)) {
		REAL(cuMipmappedArrayGetMemoryRequirements)(&need, array, d->ordinal);
		REAL(cuMipmappedArrayDestroy)(array);
	}
	return kerf_physical(need.size ? need.size : 2 * computed(a)); /* all levels: below twice the first */
}

static CUresult begin(const desc_t *a, unsigned levels, struct device **d, uint64_t *bytes)
{
	CUresult r;

	*d = kerf_current_device(&r);
	if (!*d)
		return r;
	*bytes = levels ? mipmap_bytes(a, levels, *d) : array_bytes(a, *d);
	return kerf_charge(*d, *bytes);
}

/* True: entered in the books. False: the charge is gone, and the caller destroys what was made. */
static bool finish(enum book_kind kind, const void *handle, struct device *d, uint64_t bytes, CUresult r)
{
	struct book b = {
		.key = (uintptr_t)handle, .kind = kind, .ordinal = d->ordinal, .bytes = bytes,
		.context = r ? 0 : kerf_current_context(),
	};

	if (r == CUDA_SUCCESS && book_put(&b))
		return true;
	kerf_discharge(d, bytes);
	return false;
}

/* What the four array calls have in common; `real` takes the tenant's own descriptor. */
static CUresult create(CUresult (*real)(CUarray *, const void *), CUarray *array, const void *own, const desc_t *a)
{
	struct device *d;
	uint64_t bytes = 0;
	CUresult r = begin(a, 0, &d, &bytes);

	if (r)
		return r;
	r = real(array, own);
	if (finish(BOOK_ARRAY, r ? NULL : *array, d, bytes, r) || r)
		return r;
	REAL(cuArrayDestroy)(*array);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

struct desc_v1 { unsigned int width, height, format, channels; };
struct desc3d_v1 { unsigned int width, height, depth, format, channels, flags; };

CUresult on_array_create(real_on_array_create real, CUarray *array, const CUDA_ARRAY_DESCRIPTOR *desc)
{
	desc_t a;

	if (!array || !desc)
		return real(array, desc);
	a = (desc_t){ .Width = desc->Width, .Height = desc->Height, .Format = desc->Format, .NumChannels = desc->NumChannels };
	return create((CUresult (*)(CUarray *, const void *))(void *)real, array, desc, &a);
}

CUresult on_array_create_v1(real_on_array_create_v1 real, CUarray *array, const void *desc)
{
	const struct desc_v1 *v = desc;
	desc_t a;

	if (!array || !v)
		return real(array, desc);
	a = (desc_t){ .Width = v->width, .Height = v->height, .Format = (CUarray_format)v->format, .NumChannels = v->channels };
	return create(real, array, desc, &a);
}

CUresult on_array3d_create(real_on_array3d_create real, CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *desc)
{
	if (!array || !desc)
		return real(array, desc);
	return create((CUresult (*)(CUarray *, const void *))(void *)real, array, desc, desc);
}

CUresult on_array3d_create_v1(real_on_array3d_create_v1 real, CUarray *array, const void *desc)
{
	const struct desc3d_v1 *v = desc;
	desc_t a;

	if (!array || !v)
		return real(array, desc);
	a = (desc_t){
		.Width = v->width, .Height = v->height, .Depth = v->depth,
		.Format = (CUarray_format)v->format, .NumChannels = v->channels, .Flags = v->flags,
	};
	return create(real, array, desc, &a);
}

CUresult on_mipmap_create(real_on_mipmap_create real, CUmipmappedArray *array, const CUDA_ARRAY3D_DESCRIPTOR *desc, unsigned int levels)
{
	struct device *d;
	uint64_t bytes = 0;
	CUresult r;

	if (!array || !desc || !levels)
		return real(array, desc, levels);
	r = begin(desc, levels, &d, &bytes);
	if (r)
		return r;
	r = real(array, desc, levels);
	if (finish(BOOK_MIPMAP, r ? NULL : *array, d, bytes, r) || r)
		return r;
	REAL(cuMipmappedArrayDestroy)(*array);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult settle(bool booked, struct book *b, CUresult r)
{
	if (booked && r) {
		book_put(b);
	} else if (booked) {
		kerf_discharge(kerf_device(b->ordinal), b->bytes);
		kerf_holder_gone(b->key);
	}
	return r;
}

CUresult on_array_destroy(real_on_array_destroy real, CUarray array)
{
	struct book b;
	bool booked = book_take(BOOK_ARRAY, (uintptr_t)array, &b);

	return settle(booked, &b, real(array));
}

CUresult on_mipmap_destroy(real_on_mipmap_destroy real, CUmipmappedArray array)
{
	struct book b;
	bool booked = book_take(BOOK_MIPMAP, (uintptr_t)array, &b);

	return settle(booked, &b, real(array));
}
