/* copy.c: every memcpy and memset. All are one shape: rows, in layers, from one side to the other. */
#include "sim.h"

#include <string.h>

/* --- the ops ----------------------------------------------------------------------------------------- */

static bool backed(const struct copy *c, const struct side *s)
{
	return addr_backed(s->at, (c->depth - 1) * s->slice + (c->height - 1) * s->pitch + c->width);
}

static CUresult run_copy(struct op *op)
{
	const struct copy *c = (const struct copy *)op->arg;
	REQUIRE(backed(c, &c->src) && backed(c, &c->dst), CUDA_ERROR_ILLEGAL_ADDRESS);
	char *dst = addr_bytes(c->dst.at), *src = addr_bytes(c->src.at);
	for (uint64_t z = 0; z < c->depth; z++)
		for (uint64_t y = 0; y < c->height; y++)
			memmove(dst + z * c->dst.slice + y * c->dst.pitch, src + z * c->src.slice + y * c->src.pitch, c->width);
	return CUDA_SUCCESS;
}

static uint64_t time_for(uint64_t bytes, uint64_t rate) { return rate ? (uint64_t)((double)bytes * 1e9 / (double)rate) : 0; }

static CUresult make_copy(const struct copy *c, struct op **out)
{
	const struct simdev *d = c->dst.dev ? c->dst.dev : c->src.dev;
	uint64_t bytes = c->width * c->height * c->depth, rate;
	enum op_unit unit;
	if (c->src.host) {
		unit = OP_H2D;
		rate = d ? d->gpu->facts.bw_h2d : 0;
	} else if (c->dst.host) {
		unit = OP_D2H;
		rate = d->gpu->facts.bw_d2h;
	} else if (c->src.dev != c->dst.dev) {
		unit = OP_D2H;
		rate = d->gpu->facts.bw_p2p;
	} else {
		unit = OP_COMPUTE;
		rate = d->gpu->facts.bw_d2d;
	}
	struct op *op = op_new(unit, CU_GRAPH_NODE_TYPE_MEMCPY, sizeof *c);
	REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
	memcpy(op->arg, c, sizeof *c);
	op->run = run_copy;
	op->bytes = bytes;
	op->cost = time_for(bytes, rate);
	*out = op;
	return CUDA_SUCCESS;
}

static CUresult submit_copy(CUstream h, const struct copy *c, bool async)
{
	struct op *op;
	bool host = c->src.host || c->dst.host, pageable = c->src.pageable || c->dst.pageable;
	if (!c->width || !c->height || !c->depth)
		return CUDA_SUCCESS;
	TRY(make_copy(c, &op));
	if (tls_current)
		__atomic_fetch_add(&tls_current->dev->use->copies, 1, __ATOMIC_RELAXED);
	/* Pageable memory cannot be touched behind the program's back: as the real driver may, wait. A capture only
	 * notes it down. */
	CUstream s;
	pthread_mutex_lock(&g.lock);
	bool captured = stream_of(h, &s) == CUDA_SUCCESS && capturing(s);
	pthread_mutex_unlock(&g.lock);
	bool wait = async ? pageable && !captured : host;
	return wait ? submit_wait(h, op) : submit(h, op);
}

/* --- sides ------------------------------------------------------------------------------------------- */

/* Any address: device memory, managed, page-locked, or else the program's own. */
static CUresult side_any(CUdeviceptr p, uint64_t bytes, bool write, bool must_be_device, struct side *out)
{
	struct span s;
	*out = (struct side){ .at = p };
	REQUIRE(p || !bytes, CUDA_ERROR_INVALID_VALUE);
	if (addr_find(p, &s)) {
		REQUIRE(!bytes || addr_accessible(tls_current ? tls_current->dev : s.range->dev, p, bytes, write), CUDA_ERROR_INVALID_VALUE);
		out->host = s.range->kind == R_HOST || s.range->kind == R_REGISTERED;
		out->dev = out->host ? NULL : s.range->dev;
		return CUDA_SUCCESS;
	}
	REQUIRE(!bytes || (!must_be_device && !addr_is_device(p)), CUDA_ERROR_INVALID_VALUE);
	out->host = out->pageable = true;
	return CUDA_SUCCESS;
}

static CUresult side_array(CUarray a, struct side *out)
{
	REQUIRE(is_kind(a, K_ARRAY), CUDA_ERROR_INVALID_HANDLE);
	REQUIRE(a->at, CUDA_ERROR_NOT_MAPPED);
	*out = (struct side){ .at = a->at, .pitch = a->pitch, .slice = a->slice, .dev = a->ctx->dev };
	return CUDA_SUCCESS;
}

struct end { /* one side as CUDA_MEMCPY3D describes it */
	CUmemorytype type;
	const void *host;
	CUdeviceptr device;
	CUarray array;
	size_t x, y, z, pitch, height;
};

static CUresult side_of(const struct end *e, const CUDA_MEMCPY3D *p, bool write, struct side *out)
{
	uint64_t pitch = e->pitch ? e->pitch : p->WidthInBytes;
	uint64_t height = e->height ? e->height : p->Height;
	if (e->type == CU_MEMORYTYPE_ARRAY) {
		TRY(side_array(e->array, out));
		REQUIRE(e->x + p->WidthInBytes <= e->array->pitch && e->y + p->Height <= e->array->rows && e->z + p->Depth <= e->array->layers,
		        CUDA_ERROR_INVALID_VALUE);
		out->at += e->z * out->slice + e->y * out->pitch + e->x;
		return CUDA_SUCCESS;
	}
	REQUIRE(pitch >= e->x + p->WidthInBytes || p->Height * p->Depth <= 1, CUDA_ERROR_INVALID_VALUE);
	CUdeviceptr base = e->type == CU_MEMORYTYPE_HOST ? (CUdeviceptr)e->host : e->device;
	REQUIRE(e->type == CU_MEMORYTYPE_HOST || e->type == CU_MEMORYTYPE_DEVICE || e->type == CU_MEMORYTYPE_UNIFIED, CUDA_ERROR_INVALID_VALUE);
	uint64_t first = e->z * pitch * height + e->y * pitch + e->x;
	uint64_t last = p->Depth && p->Height ? (p->Depth - 1) * pitch * height + (p->Height - 1) * pitch + p->WidthInBytes : 0;
	TRY(side_any(base + first, last, write, e->type == CU_MEMORYTYPE_DEVICE, out));
	out->pitch = pitch;
	out->slice = pitch * height;
	return CUDA_SUCCESS;
}

static CUresult resolve_3d(const CUDA_MEMCPY3D *p, struct copy *c)
{
	REQUIRE(p && p->srcLOD == 0 && p->dstLOD == 0, CUDA_ERROR_INVALID_VALUE);
	struct end src = { p->srcMemoryType, p->srcHost, p->srcDevice, p->srcArray, p->srcXInBytes, p->srcY, p->srcZ, p->srcPitch, p->srcHeight };
	struct end dst = { p->dstMemoryType, p->dstHost, p->dstDevice, p->dstArray, p->dstXInBytes, p->dstY, p->dstZ, p->dstPitch, p->dstHeight };
	*c = (struct copy){ .width = p->WidthInBytes, .height = p->Height, .depth = p->Depth };
	TRY(side_of(&src, p, false, &c->src));
	return side_of(&dst, p, true, &c->dst);
}

CUresult copy_op_3d(const CUDA_MEMCPY3D *p, struct op **out, bool *pageable, bool *host)
{
	struct copy c;
	TRY(resolve_3d(p, &c));
	*pageable = c.src.pageable || c.dst.pageable;
	*host = c.src.host || c.dst.host;
	return make_copy(&c, out);
}

static CUresult copy_3d(const CUDA_MEMCPY3D *p, CUstream h, bool async)
{
	struct copy c;
	CUcontext ctx;
	TRY(current(&ctx));
	if (g.zero_cost)
		return p ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&g.lock);
	CUresult r = resolve_3d(p, &c);
	pthread_mutex_unlock(&g.lock);
	TRY(r);
	return submit_copy(h, &c, async);
}

/* --- one row ----------------------------------------------------------------------------------------- */

enum place { ANY, DEVICE, HOST };

static CUresult side_linear(enum place place, CUdeviceptr p, uint64_t n, bool write, struct side *out)
{
	return side_any(p, n, write, place == DEVICE, out);
}

static CUresult copy_linear(enum place to, CUdeviceptr dst, enum place from, CUdeviceptr src, size_t n, CUstream h, bool async)
{
	struct copy c = { .width = n, .height = 1, .depth = 1 };
	CUcontext ctx;
	TRY(current(&ctx));
	if (g.zero_cost)
		return n && (!dst || !src) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
	pthread_mutex_lock(&g.lock);
	CUresult r = side_linear(from, src, n, false, &c.src);
	if (r == CUDA_SUCCESS)
		r = side_linear(to, dst, n, true, &c.dst);
	pthread_mutex_unlock(&g.lock);
	TRY(r);
	return submit_copy(h, &c, async);
}

CUresult cuMemcpy(CUdeviceptr dst, CUdeviceptr src, size_t n) { return copy_linear(ANY, dst, ANY, src, n, NULL, false); }
CUresult cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s) { return copy_linear(ANY, dst, ANY, src, n, s, true); }
CUresult cuMemcpyHtoD_v2(CUdeviceptr dst, const void *src, size_t n) { return copy_linear(DEVICE, dst, HOST, (CUdeviceptr)src, n, NULL, false); }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void *src, size_t n, CUstream s) { return copy_linear(DEVICE, dst, HOST, (CUdeviceptr)src, n, s, true); }
CUresult cuMemcpyDtoH_v2(void *dst, CUdeviceptr src, size_t n) { return copy_linear(HOST, (CUdeviceptr)dst, DEVICE, src, n, NULL, false); }
CUresult cuMemcpyDtoHAsync_v2(void *dst, CUdeviceptr src, size_t n, CUstream s) { return copy_linear(HOST, (CUdeviceptr)dst, DEVICE, src, n, s, true); }
CUresult cuMemcpyDtoD_v2(CUdeviceptr dst, CUdeviceptr src, size_t n) { return copy_linear(DEVICE, dst, DEVICE, src, n, NULL, false); }
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s) { return copy_linear(DEVICE, dst, DEVICE, src, n, s, true); }

CUresult cuMemcpyPeerAsync(CUdeviceptr dst, CUcontext dstContext, CUdeviceptr src, CUcontext srcContext, size_t n, CUstream s)
{
	TRY(ready());
	REQUIRE(is_kind(dstContext, K_CONTEXT) && is_kind(srcContext, K_CONTEXT), CUDA_ERROR_INVALID_CONTEXT);
	return copy_linear(DEVICE, dst, DEVICE, src, n, s, true);
}

CUresult cuMemcpyPeer(CUdeviceptr dst, CUcontext dstContext, CUdeviceptr src, CUcontext srcContext, size_t n)
{
	return cuMemcpyPeerAsync(dst, dstContext, src, srcContext, n, NULL);
}

/* --- to and from arrays ------------------------------------------------------------------------------ */

/* Offsets are in bytes from the array's start, rows one after another. */
static CUresult array_linear(CUarray a, size_t offset, size_t n, struct side *out)
{
	TRY(side_array(a, out));
	REQUIRE(offset <= a->slice * a->layers && n <= a->slice * a->layers - offset, CUDA_ERROR_INVALID_VALUE);
	out->at += offset;
	return CUDA_SUCCESS;
}

static CUresult copy_array(CUarray dst, size_t dst_offset, CUdeviceptr dst_ptr, CUarray src, size_t src_offset, CUdeviceptr src_ptr,
                           size_t n, CUstream h, bool async)
{
	struct copy c = { .width = n, .height = 1, .depth = 1 };
	CUcontext ctx;
	TRY(current(&ctx));
	pthread_mutex_lock(&g.lock);
	CUresult r = src ? array_linear(src, src_offset, n, &c.src) : side_any(src_ptr, n, false, false, &c.src);
	if (r == CUDA_SUCCESS)
		r = dst ? array_linear(dst, dst_offset, n, &c.dst) : side_any(dst_ptr, n, true, false, &c.dst);
	pthread_mutex_unlock(&g.lock);
	TRY(r);
	return g.zero_cost ? CUDA_SUCCESS : submit_copy(h, &c, async);
}

#define NEED(a) REQUIRE(a, CUDA_ERROR_INVALID_HANDLE)
CUresult cuMemcpyDtoA_v2(CUarray d, size_t o, CUdeviceptr s, size_t n) { NEED(d); return copy_array(d, o, 0, NULL, 0, s, n, NULL, false); }
CUresult cuMemcpyAtoD_v2(CUdeviceptr d, CUarray s, size_t o, size_t n) { NEED(s); return copy_array(NULL, 0, d, s, o, 0, n, NULL, false); }
CUresult cuMemcpyHtoA_v2(CUarray d, size_t o, const void *s, size_t n) { NEED(d); return copy_array(d, o, 0, NULL, 0, (CUdeviceptr)s, n, NULL, false); }
CUresult cuMemcpyHtoAAsync_v2(CUarray d, size_t o, const void *s, size_t n, CUstream h) { NEED(d); return copy_array(d, o, 0, NULL, 0, (CUdeviceptr)s, n, h, true); }
CUresult cuMemcpyAtoH_v2(void *d, CUarray s, size_t o, size_t n) { NEED(s); return copy_array(NULL, 0, (CUdeviceptr)d, s, o, 0, n, NULL, false); }
CUresult cuMemcpyAtoHAsync_v2(void *d, CUarray s, size_t o, size_t n, CUstream h) { NEED(s); return copy_array(NULL, 0, (CUdeviceptr)d, s, o, 0, n, h, true); }
CUresult cuMemcpyAtoA_v2(CUarray d, size_t od, CUarray s, size_t os, size_t n) { NEED(d); NEED(s); return copy_array(d, od, 0, s, os, 0, n, NULL, false); }

/* --- 2D and 3D --------------------------------------------------------------------------------------- */

static CUDA_MEMCPY3D from_2d(const CUDA_MEMCPY2D *p)
{
	return (CUDA_MEMCPY3D){
		.srcXInBytes = p->srcXInBytes, .srcY = p->srcY, .srcMemoryType = p->srcMemoryType, .srcHost = p->srcHost, .srcDevice = p->srcDevice,
		.srcArray = p->srcArray, .srcPitch = p->srcPitch, .dstXInBytes = p->dstXInBytes, .dstY = p->dstY, .dstMemoryType = p->dstMemoryType,
		.dstHost = p->dstHost, .dstDevice = p->dstDevice, .dstArray = p->dstArray, .dstPitch = p->dstPitch,
		.WidthInBytes = p->WidthInBytes, .Height = p->Height, .Depth = 1,
	};
}

static CUresult copy_2d(const CUDA_MEMCPY2D *p, CUstream h, bool async)
{
	TRY(ready());
	REQUIRE(p, CUDA_ERROR_INVALID_VALUE);
	CUDA_MEMCPY3D p3 = from_2d(p);
	return copy_3d(&p3, h, async);
}

CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D *pCopy) { return copy_2d(pCopy, NULL, false); }
CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *pCopy) { return copy_2d(pCopy, NULL, false); }
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *pCopy, CUstream hStream) { return copy_2d(pCopy, hStream, true); }
CUresult cuMemcpy3D_v2(const CUDA_MEMCPY3D *pCopy) { return copy_3d(pCopy, NULL, false); }
CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *pCopy, CUstream hStream) { return copy_3d(pCopy, hStream, true); }

/* The peer struct is the plain one with contexts where that has reserved words. */
CUresult cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER *pCopy) { return copy_3d((const CUDA_MEMCPY3D *)pCopy, NULL, false); }
CUresult cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER *pCopy, CUstream hStream) { return copy_3d((const CUDA_MEMCPY3D *)pCopy, hStream, true); }

/* --- batches ----------------------------------------------------------------------------------------- */

CUresult cuMemcpyBatchAsync(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs, size_t *attrsIdxs,
                            size_t numAttrs, size_t *failIdx, CUstream hStream)
{
	TRY(ready());
	REQUIRE(dsts && srcs && sizes && count && attrs && attrsIdxs && numAttrs && numAttrs <= count, CUDA_ERROR_INVALID_VALUE);
	REQUIRE(hStream, CUDA_ERROR_INVALID_VALUE); /* the NULL stream is refused by the real driver too */
	for (size_t i = 0; i < count; i++) {
		CUresult r = copy_linear(ANY, dsts[i], ANY, srcs[i], sizes[i], hStream, true);
		if (r != CUDA_SUCCESS) {
			if (failIdx)
				*failIdx = i;
			return r;
		}
	}
	return CUDA_SUCCESS;
}

CUresult cuMemcpyBatchAsync_v2(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                               size_t *attrsIdxs, size_t numAttrs, CUstream hStream)
{
	return cuMemcpyBatchAsync(dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, NULL, hStream);
}

static CUresult operand(const CUmemcpy3DOperand *o, struct end *e, unsigned *element)
{
	*e = (struct end){ .type = CU_MEMORYTYPE_UNIFIED };
	if (o->type == CU_MEMCPY_OPERAND_TYPE_POINTER) {
		e->device = o->op.ptr.ptr;
		e->pitch = o->op.ptr.rowLength; /* in elements, for now */
		e->height = o->op.ptr.layerHeight;
		return CUDA_SUCCESS;
	}
	REQUIRE(o->type == CU_MEMCPY_OPERAND_TYPE_ARRAY && is_kind(o->op.array.array, K_ARRAY), CUDA_ERROR_INVALID_VALUE);
	CUarray a = o->op.array.array;
	*element = (unsigned)(a->desc.Width ? a->pitch / a->desc.Width : 1);
	*e = (struct end){ .type = CU_MEMORYTYPE_ARRAY, .array = a, .x = o->op.array.offset.x * *element, .y = o->op.array.offset.y, .z = o->op.array.offset.z };
	return CUDA_SUCCESS;
}

static CUresult batch_op(const CUDA_MEMCPY3D_BATCH_OP *op, CUstream h)
{
	struct end src, dst;
	unsigned element = 1;
	TRY(operand(&op->src, &src, &element));
	TRY(operand(&op->dst, &dst, &element));
	CUDA_MEMCPY3D p = {
		.srcXInBytes = src.x, .srcY = src.y, .srcZ = src.z, .srcMemoryType = src.type, .srcDevice = src.device, .srcArray = src.array,
		.srcPitch = src.pitch * element, .srcHeight = src.height, .dstXInBytes = dst.x, .dstY = dst.y, .dstZ = dst.z,
		.dstMemoryType = dst.type, .dstDevice = dst.device, .dstArray = dst.array, .dstPitch = dst.pitch * element, .dstHeight = dst.height,
		.WidthInBytes = op->extent.width * element, .Height = op->extent.height, .Depth = op->extent.depth,
	};
	return copy_3d(&p, h, true);
}

CUresult cuMemcpy3DBatchAsync(size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, size_t *failIdx, unsigned long long flags, CUstream hStream)
{
	TRY(ready());
	REQUIRE(numOps && opList && flags == 0 && hStream, CUDA_ERROR_INVALID_VALUE);
	for (size_t i = 0; i < numOps; i++) {
		CUresult r = batch_op(&opList[i], hStream);
		if (r != CUDA_SUCCESS) {
			if (failIdx)
				*failIdx = i;
			return r;
		}
	}
	return CUDA_SUCCESS;
}

CUresult cuMemcpy3DBatchAsync_v2(size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, unsigned long long flags, CUstream hStream)
{
	return cuMemcpy3DBatchAsync(numOps, opList, NULL, flags, hStream);
}

CUresult cuMemcpyWithAttributesAsync(CUdeviceptr dst, CUdeviceptr src, size_t size, CUmemcpyAttributes *attr, CUstream hStream)
{
	REQUIRE(attr, CUDA_ERROR_INVALID_VALUE);
	return copy_linear(ANY, dst, ANY, src, size, hStream, true);
}

CUresult cuMemcpy3DWithAttributesAsync(CUDA_MEMCPY3D_BATCH_OP *op, unsigned long long flags, CUstream hStream)
{
	TRY(ready());
	REQUIRE(op && flags == 0, CUDA_ERROR_INVALID_VALUE);
	return batch_op(op, hStream);
}

/* --- fills ------------------------------------------------------------------------------------------- */

static CUresult run_fill(struct op *op)
{
	const struct fill *f = (const struct fill *)op->arg;
	REQUIRE(addr_backed(f->at, (f->height - 1) * f->pitch + f->width * f->element), CUDA_ERROR_ILLEGAL_ADDRESS);
	for (uint64_t y = 0; y < f->height; y++) {
		char *row = (char *)addr_bytes(f->at) + y * f->pitch;
		if (f->element == 1)
			memset(row, (int)f->value, f->width);
		else if (f->element == 2)
			for (uint64_t x = 0; x < f->width; x++)
				((uint16_t *)row)[x] = (uint16_t)f->value;
		else
			for (uint64_t x = 0; x < f->width; x++)
				((uint32_t *)row)[x] = f->value;
	}
	return CUDA_SUCCESS;
}

CUresult fill_op(const struct simdev *d, struct fill f, struct op **out)
{
	uint64_t row = f.width * f.element;
	if (f.height <= 1)
		f.pitch = row;
	REQUIRE(f.at % f.element == 0 && f.pitch >= row && f.pitch % f.element == 0, CUDA_ERROR_INVALID_VALUE);
	if (row && f.height)
		REQUIRE(addr_accessible(d, f.at, (f.height - 1) * f.pitch + row, true), CUDA_ERROR_INVALID_VALUE);
	struct op *op = op_new(OP_COMPUTE, CU_GRAPH_NODE_TYPE_MEMSET, sizeof f);
	REQUIRE(op, CUDA_ERROR_OUT_OF_MEMORY);
	memcpy(op->arg, &f, sizeof f);
	op->run = run_fill;
	op->bytes = row * f.height;
	op->cost = time_for(op->bytes, d->gpu->facts.bw_d2d);
	*out = op;
	return CUDA_SUCCESS;
}

static CUresult fill(CUdeviceptr at, uint64_t pitch, unsigned element, uint32_t value, uint64_t width, uint64_t height, CUstream h)
{
	CUcontext c;
	struct op *op = NULL;
	TRY(current(&c));
	REQUIRE(at || !width || !height, CUDA_ERROR_INVALID_VALUE);
	if (g.zero_cost)
		return CUDA_SUCCESS;
	pthread_mutex_lock(&g.lock);
	CUresult r = fill_op(c->dev, (struct fill){ at, pitch, width, height, value, element }, &op);
	pthread_mutex_unlock(&g.lock);
	TRY(r);
	if (!width || !height) {
		op_discard(op);
		return CUDA_SUCCESS;
	}
	return submit(h, op);
}

#define FILLS(bits, type)                                                                                                                                       \
	CUresult cuMemsetD##bits##_v2(CUdeviceptr at, type v, size_t n) { return fill(at, 0, bits / 8, v, n, 1, NULL); }                                            \
	CUresult cuMemsetD##bits##Async(CUdeviceptr at, type v, size_t n, CUstream s) { return fill(at, 0, bits / 8, v, n, 1, s); }                                 \
	CUresult cuMemsetD2D##bits##_v2(CUdeviceptr at, size_t pitch, type v, size_t w, size_t h) { return fill(at, pitch, bits / 8, v, w, h, NULL); }              \
	CUresult cuMemsetD2D##bits##Async(CUdeviceptr at, size_t pitch, type v, size_t w, size_t h, CUstream s) { return fill(at, pitch, bits / 8, v, w, h, s); }
FILLS(8, unsigned char)
FILLS(16, unsigned short)
FILLS(32, unsigned int)
