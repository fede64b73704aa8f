/* capture.c: stream capture. */
#include "sim.h"
bool capturing(CUstream s) { return s->capture != NULL; }
CUresult capture_op(CUstream s, struct op *op) { (void)s; op_discard(op); return CUDA_ERROR_NOT_SUPPORTED; }
CUresult capture_invalidate(CUstream s) { (void)s; return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; }
CUresult capture_event(CUstream s, CUevent e) { (void)s; (void)e; return CUDA_ERROR_NOT_SUPPORTED; }
CUresult capture_wait(CUstream s, CUevent e) { (void)s; (void)e; return CUDA_ERROR_NOT_SUPPORTED; }
CUresult capture_forbids(void) { return CUDA_SUCCESS; }
