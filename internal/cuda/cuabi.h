/* cuabi.h: the CUDA driver API as its libraries speak it (ABI), in our own words.
 *
 * Shared by the shim, the simulated driver and the tenants, so that none needs a vendor header to build.
 * Layouts and values are those of CUDA 12.0 to 13.4 on 64-bit Linux. There are no renaming macros: a name
 * here is a symbol in libcuda.so.1 (cuMemAlloc_v2, not cuMemAlloc). The parts:
 *
 *   cuabi_enums.h    results, attributes, flags
 *   cuabi_structs.h  what is passed by pointer; sizes and offsets are exact and checked below
 *   cuabi_calls.h    prototypes, with the per-thread-stream twins (_ptsz, _ptds)
 *   entrypoints.tsv  which symbol answers to which name, from which version on
 *
 * A type whose layout changed between versions carries its version (CUDA_KERNEL_NODE_PARAMS_v1, _v2, _v3);
 * the name without one is the layout that the newest symbol here takes.
 */
#ifndef KERF_CUABI_H
#define KERF_CUABI_H

#include <stddef.h>
#include <stdint.h>

typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
typedef unsigned long long CUdeviceptr;
typedef unsigned int CUdeviceptr_v1; /* the 32-bit world before CUDA 3.2 */
typedef int CUdevice;

typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUlib_st *CUlibrary;
typedef struct CUkern_st *CUkernel;
typedef struct CUarray_st *CUarray;
typedef struct CUmipmappedArray_st *CUmipmappedArray;
typedef struct CUtexref_st *CUtexref;
typedef struct CUsurfref_st *CUsurfref;
typedef struct CUevent_st *CUevent;
typedef struct CUstream_st *CUstream;
typedef struct CUgraphicsResource_st *CUgraphicsResource;
typedef struct CUlinkState_st *CUlinkState;
typedef struct CUextMemory_st *CUexternalMemory;
typedef struct CUextSemaphore_st *CUexternalSemaphore;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct CUmemPoolHandle_st *CUmemoryPool;
typedef struct CUuserObject_st *CUuserObject;
typedef struct CUgreenCtx_st *CUgreenCtx;
typedef unsigned long long CUtexObject;
typedef unsigned long long CUsurfObject;
typedef unsigned long long CUmemGenericAllocationHandle;
typedef cuuint64_t CUgraphConditionalHandle;

/* Streams that are not created. NULL is the legacy one, or the thread's own in a _ptsz or _ptds call. */
#define CU_STREAM_LEGACY     ((CUstream)0x1)
#define CU_STREAM_PER_THREAD ((CUstream)0x2)

#define CU_DEVICE_CPU     ((CUdevice)-1)
#define CU_DEVICE_INVALID ((CUdevice)-2)
#define CU_IPC_HANDLE_SIZE 64

/* cuLaunchKernel's `extra` list. */
#define CU_LAUNCH_PARAM_END            ((void *)0x00)
#define CU_LAUNCH_PARAM_BUFFER_POINTER ((void *)0x01)
#define CU_LAUNCH_PARAM_BUFFER_SIZE    ((void *)0x02)

#include "cuabi_enums.h"
#include "cuabi_structs.h"
#include "cuabi_calls.h"

#endif
