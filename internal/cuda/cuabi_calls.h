/* cuabi_calls.h: prototypes of the CUDA driver API, by exported symbol. Included by cuabi.h.
 *
 * CU_PTSZ and CU_PTDS declare a call together with its twin that takes NULL (or no stream at all) as the
 * calling thread's own stream rather than the legacy one.
 */
#ifndef KERF_CUABI_CALLS_H
#define KERF_CUABI_CALLS_H

#ifndef CUAPI
#define CUAPI extern
#endif
#define CU_PTSZ(name, args) CUAPI CUresult name args; CUAPI CUresult name##_ptsz args
#define CU_PTDS(name, args) CUAPI CUresult name args; CUAPI CUresult name##_ptds args

/* --- resolution, errors, versions -------------------------------------------------------------------- */

CUAPI CUresult cuInit(unsigned int Flags);
CUAPI CUresult cuDriverGetVersion(int *driverVersion);
CUAPI CUresult cuGetErrorName(CUresult error, const char **pStr);
CUAPI CUresult cuGetErrorString(CUresult error, const char **pStr);
CUAPI CUresult cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags);
CUAPI CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                                   CUdriverProcAddressQueryResult *symbolStatus);
CUAPI CUresult cuGetExportTable(const void **ppExportTable, const CUuuid *pExportTableId);

/* --- devices ----------------------------------------------------------------------------------------- */

CUAPI CUresult cuDeviceGet(CUdevice *device, int ordinal);
CUAPI CUresult cuDeviceGetCount(int *count);
CUAPI CUresult cuDeviceGetName(char *name, int len, CUdevice dev);
CUAPI CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice dev);
CUAPI CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice dev);
CUAPI CUresult cuDeviceGetLuid(char *luid, unsigned int *deviceNodeMask, CUdevice dev);
CUAPI CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev);
CUAPI CUresult cuDeviceGetAttribute(int *pi, CUdevice_attribute attrib, CUdevice dev);
CUAPI CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice dev);
CUAPI CUresult cuDeviceGetProperties(CUdevprop *prop, CUdevice dev);
CUAPI CUresult cuDeviceGetByPCIBusId(CUdevice *dev, const char *pciBusId);
CUAPI CUresult cuDeviceGetPCIBusId(char *pciBusId, int len, CUdevice dev);
CUAPI CUresult cuDeviceGetTexture1DLinearMaxWidth(size_t *maxWidthInElements, CUarray_format format, unsigned numChannels, CUdevice dev);
CUAPI CUresult cuDeviceGetExecAffinitySupport(int *pi, CUexecAffinityType type, CUdevice dev);
CUAPI CUresult cuDeviceCanAccessPeer(int *canAccessPeer, CUdevice dev, CUdevice peerDev);
CUAPI CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attrib, CUdevice srcDevice, CUdevice dstDevice);
CUAPI CUresult cuFlushGPUDirectRDMAWrites(CUflushGPUDirectRDMAWritesTarget target, CUflushGPUDirectRDMAWritesScope scope);

/* --- contexts ---------------------------------------------------------------------------------------- */

CUAPI CUresult cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev);
CUAPI CUresult cuDevicePrimaryCtxRelease(CUdevice dev);
CUAPI CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev);
CUAPI CUresult cuDevicePrimaryCtxReset(CUdevice dev);
CUAPI CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev);
CUAPI CUresult cuDevicePrimaryCtxSetFlags(CUdevice dev, unsigned int flags);
CUAPI CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned int flags);
CUAPI CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned int *flags, int *active);
CUAPI CUresult cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev);
CUAPI CUresult cuCtxCreate_v3(CUcontext *pctx, CUexecAffinityParam *paramsArray, int numParams, unsigned int flags, CUdevice dev);
CUAPI CUresult cuCtxCreate_v4(CUcontext *pctx, CUctxCreateParams *ctxCreateParams, unsigned int flags, CUdevice dev);
CUAPI CUresult cuCtxDestroy(CUcontext ctx);
CUAPI CUresult cuCtxDestroy_v2(CUcontext ctx);
CUAPI CUresult cuCtxAttach(CUcontext *pctx, unsigned int flags);
CUAPI CUresult cuCtxDetach(CUcontext ctx);
CUAPI CUresult cuCtxPushCurrent(CUcontext ctx);
CUAPI CUresult cuCtxPushCurrent_v2(CUcontext ctx);
CUAPI CUresult cuCtxPopCurrent(CUcontext *pctx);
CUAPI CUresult cuCtxPopCurrent_v2(CUcontext *pctx);
CUAPI CUresult cuCtxSetCurrent(CUcontext ctx);
CUAPI CUresult cuCtxGetCurrent(CUcontext *pctx);
CUAPI CUresult cuCtxGetDevice(CUdevice *device);
CUAPI CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext ctx);
CUAPI CUresult cuCtxGetFlags(unsigned int *flags);
CUAPI CUresult cuCtxSetFlags(unsigned int flags);
CUAPI CUresult cuCtxGetId(CUcontext ctx, unsigned long long *ctxId);
CUAPI CUresult cuCtxGetApiVersion(CUcontext ctx, unsigned int *version);
CUAPI CUresult cuCtxSynchronize(void);
CUAPI CUresult cuCtxSynchronize_v2(CUcontext ctx);
CUAPI CUresult cuCtxSetLimit(CUlimit limit, size_t value);
CUAPI CUresult cuCtxGetLimit(size_t *pvalue, CUlimit limit);
CUAPI CUresult cuCtxGetCacheConfig(CUfunc_cache *pconfig);
CUAPI CUresult cuCtxSetCacheConfig(CUfunc_cache config);
CUAPI CUresult cuCtxGetSharedMemConfig(CUsharedconfig *pConfig);
CUAPI CUresult cuCtxSetSharedMemConfig(CUsharedconfig config);
CUAPI CUresult cuCtxGetStreamPriorityRange(int *leastPriority, int *greatestPriority);
CUAPI CUresult cuCtxResetPersistingL2Cache(void);
CUAPI CUresult cuCtxGetExecAffinity(CUexecAffinityParam *pExecAffinity, CUexecAffinityType type);
CUAPI CUresult cuCtxEnablePeerAccess(CUcontext peerContext, unsigned int Flags);
CUAPI CUresult cuCtxDisablePeerAccess(CUcontext peerContext);

/* --- memory ------------------------------------------------------------------------------------------ */

CUAPI CUresult cuMemGetInfo_v2(size_t *free, size_t *total);
CUAPI CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize);
CUAPI CUresult cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height, unsigned int ElementSizeBytes);
CUAPI CUresult cuMemAllocManaged(CUdeviceptr *dptr, size_t bytesize, unsigned int flags);
CUAPI CUresult cuMemFree_v2(CUdeviceptr dptr);
CUAPI CUresult cuMemGetAddressRange_v2(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr);
CUAPI CUresult cuMemAllocHost_v2(void **pp, size_t bytesize);
CUAPI CUresult cuMemHostAlloc(void **pp, size_t bytesize, unsigned int Flags);
CUAPI CUresult cuMemFreeHost(void *p);
CUAPI CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *pdptr, void *p, unsigned int Flags);
CUAPI CUresult cuMemHostGetFlags(unsigned int *pFlags, void *p);
CUAPI CUresult cuMemHostRegister_v2(void *p, size_t bytesize, unsigned int Flags);
CUAPI CUresult cuMemHostUnregister(void *p);
CUAPI CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr ptr);
CUAPI CUresult cuPointerGetAttributes(unsigned int numAttributes, CUpointer_attribute *attributes, void **data, CUdeviceptr ptr);
CUAPI CUresult cuPointerSetAttribute(const void *value, CUpointer_attribute attribute, CUdeviceptr ptr);
CUAPI CUresult cuMemGetHandleForAddressRange(void *handle, CUdeviceptr dptr, size_t size, CUmemRangeHandleType handleType, unsigned long long flags);
CUAPI CUresult cuMemAdvise(CUdeviceptr devPtr, size_t count, CUmem_advise advice, CUdevice device);
CUAPI CUresult cuMemAdvise_v2(CUdeviceptr devPtr, size_t count, CUmem_advise advice, CUmemLocation location);
CU_PTSZ(cuMemPrefetchAsync, (CUdeviceptr devPtr, size_t count, CUdevice dstDevice, CUstream hStream));
CU_PTSZ(cuMemPrefetchAsync_v2, (CUdeviceptr devPtr, size_t count, CUmemLocation location, unsigned int flags, CUstream hStream));
CU_PTSZ(cuMemPrefetchBatchAsync, (CUdeviceptr *dptrs, size_t *sizes, size_t count, CUmemLocation *prefetchLocs,
                                  size_t *prefetchLocIdxs, size_t numPrefetchLocs, unsigned long long flags, CUstream hStream));
CU_PTSZ(cuMemDiscardBatchAsync, (CUdeviceptr *dptrs, size_t *sizes, size_t count, unsigned long long flags, CUstream hStream));
CU_PTSZ(cuMemDiscardAndPrefetchBatchAsync, (CUdeviceptr *dptrs, size_t *sizes, size_t count, CUmemLocation *prefetchLocs,
                                            size_t *prefetchLocIdxs, size_t numPrefetchLocs, unsigned long long flags, CUstream hStream));
CUAPI CUresult cuMemRangeGetAttribute(void *data, size_t dataSize, CUmem_range_attribute attribute, CUdeviceptr devPtr, size_t count);
CUAPI CUresult cuMemRangeGetAttributes(void **data, size_t *dataSizes, CUmem_range_attribute *attributes, size_t numAttributes,
                                       CUdeviceptr devPtr, size_t count);
CU_PTSZ(cuStreamAttachMemAsync, (CUstream hStream, CUdeviceptr dptr, size_t length, unsigned int flags));
CUAPI CUresult cuIpcGetMemHandle(CUipcMemHandle *pHandle, CUdeviceptr dptr);
CUAPI CUresult cuIpcOpenMemHandle(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags);
CUAPI CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags);
CUAPI CUresult cuIpcCloseMemHandle(CUdeviceptr dptr);
CUAPI CUresult cuIpcGetEventHandle(CUipcEventHandle *pHandle, CUevent event);
CUAPI CUresult cuIpcOpenEventHandle(CUevent *phEvent, CUipcEventHandle handle);

/* virtual memory management */
CUAPI CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr, unsigned long long flags);
CUAPI CUresult cuMemAddressFree(CUdeviceptr ptr, size_t size);
CUAPI CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop, unsigned long long flags);
CUAPI CUresult cuMemRelease(CUmemGenericAllocationHandle handle);
CUAPI CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags);
CU_PTSZ(cuMemMapArrayAsync, (CUarrayMapInfo *mapInfoList, unsigned int count, CUstream hStream));
CUAPI CUresult cuMemUnmap(CUdeviceptr ptr, size_t size);
CUAPI CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count);
CUAPI CUresult cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr);
CUAPI CUresult cuMemExportToShareableHandle(void *shareableHandle, CUmemGenericAllocationHandle handle,
                                            CUmemAllocationHandleType handleType, unsigned long long flags);
CUAPI CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *osHandle, CUmemAllocationHandleType shHandleType);
CUAPI CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags option);
CUAPI CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle);
CUAPI CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr);
CUAPI CUresult cuMulticastCreate(CUmemGenericAllocationHandle *mcHandle, const CUmulticastObjectProp *prop);
CUAPI CUresult cuMulticastAddDevice(CUmemGenericAllocationHandle mcHandle, CUdevice dev);
CUAPI CUresult cuMulticastBindMem(CUmemGenericAllocationHandle mcHandle, size_t mcOffset, CUmemGenericAllocationHandle memHandle,
                                  size_t memOffset, size_t size, unsigned long long flags);
CUAPI CUresult cuMulticastBindAddr(CUmemGenericAllocationHandle mcHandle, size_t mcOffset, CUdeviceptr memptr, size_t size,
                                   unsigned long long flags);
CUAPI CUresult cuMulticastUnbind(CUmemGenericAllocationHandle mcHandle, CUdevice dev, size_t mcOffset, size_t size);
CUAPI CUresult cuMulticastGetGranularity(size_t *granularity, const CUmulticastObjectProp *prop, CUmulticastGranularity_flags option);

/* stream-ordered memory and pools */
CU_PTSZ(cuMemAllocAsync, (CUdeviceptr *dptr, size_t bytesize, CUstream hStream));
CU_PTSZ(cuMemAllocFromPoolAsync, (CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool, CUstream hStream));
CU_PTSZ(cuMemFreeAsync, (CUdeviceptr dptr, CUstream hStream));
CUAPI CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool_out, CUdevice dev);
CUAPI CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice dev);
CUAPI CUresult cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool);
CUAPI CUresult cuMemGetDefaultMemPool(CUmemoryPool *pool_out, CUmemLocation *location, CUmemAllocationType type);
CUAPI CUresult cuMemGetMemPool(CUmemoryPool *pool, CUmemLocation *location, CUmemAllocationType type);
CUAPI CUresult cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool pool);
CUAPI CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *poolProps);
CUAPI CUresult cuMemPoolDestroy(CUmemoryPool pool);
CUAPI CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep);
CUAPI CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value);
CUAPI CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value);
CUAPI CUresult cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count);
CUAPI CUresult cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool memPool, CUmemLocation *location);
CUAPI CUresult cuMemPoolExportToShareableHandle(void *handle_out, CUmemoryPool pool, CUmemAllocationHandleType handleType,
                                                unsigned long long flags);
CUAPI CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool *pool_out, void *handle, CUmemAllocationHandleType handleType,
                                                  unsigned long long flags);
CUAPI CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData *shareData_out, CUdeviceptr ptr);
CUAPI CUresult cuMemPoolImportPointer(CUdeviceptr *ptr_out, CUmemoryPool pool, CUmemPoolPtrExportData *shareData);

/* arrays and external memory */
CUAPI CUresult cuArrayCreate_v2(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR *pAllocateArray);
CUAPI CUresult cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR *pArrayDescriptor, CUarray hArray);
CUAPI CUresult cuArray3DCreate_v2(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pAllocateArray);
CUAPI CUresult cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *pArrayDescriptor, CUarray hArray);
CUAPI CUresult cuArrayDestroy(CUarray hArray);
CUAPI CUresult cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *memoryRequirements, CUarray array, CUdevice device);
CUAPI CUresult cuArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *sparseProperties, CUarray array);
CUAPI CUresult cuMipmappedArrayCreate(CUmipmappedArray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pMipmappedArrayDesc, unsigned int numMipmapLevels);
CUAPI CUresult cuMipmappedArrayGetLevel(CUarray *pLevelArray, CUmipmappedArray hMipmappedArray, unsigned int level);
CUAPI CUresult cuMipmappedArrayDestroy(CUmipmappedArray hMipmappedArray);
CUAPI CUresult cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *memoryRequirements, CUmipmappedArray mipmap, CUdevice device);
CUAPI CUresult cuMipmappedArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *sparseProperties, CUmipmappedArray mipmap);
CUAPI CUresult cuImportExternalMemory(CUexternalMemory *extMem_out, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *memHandleDesc);
CUAPI CUresult cuExternalMemoryGetMappedBuffer(CUdeviceptr *devPtr, CUexternalMemory extMem, const CUDA_EXTERNAL_MEMORY_BUFFER_DESC *bufferDesc);
CUAPI CUresult cuExternalMemoryGetMappedMipmappedArray(CUmipmappedArray *mipmap, CUexternalMemory extMem,
                                                       const CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC *mipmapDesc);
CUAPI CUresult cuDestroyExternalMemory(CUexternalMemory extMem);

/* --- copies and fills -------------------------------------------------------------------------------- */

CU_PTDS(cuMemcpy, (CUdeviceptr dst, CUdeviceptr src, size_t ByteCount));
CU_PTSZ(cuMemcpyAsync, (CUdeviceptr dst, CUdeviceptr src, size_t ByteCount, CUstream hStream));
CU_PTDS(cuMemcpyPeer, (CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice, CUcontext srcContext, size_t ByteCount));
CU_PTSZ(cuMemcpyPeerAsync, (CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice, CUcontext srcContext,
                            size_t ByteCount, CUstream hStream));
CU_PTDS(cuMemcpyHtoD_v2, (CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount));
CU_PTSZ(cuMemcpyHtoDAsync_v2, (CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount, CUstream hStream));
CU_PTDS(cuMemcpyDtoH_v2, (void *dstHost, CUdeviceptr srcDevice, size_t ByteCount));
CU_PTSZ(cuMemcpyDtoHAsync_v2, (void *dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream));
CU_PTDS(cuMemcpyDtoD_v2, (CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount));
CU_PTSZ(cuMemcpyDtoDAsync_v2, (CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream));
CU_PTDS(cuMemcpyDtoA_v2, (CUarray dstArray, size_t dstOffset, CUdeviceptr srcDevice, size_t ByteCount));
CU_PTDS(cuMemcpyAtoD_v2, (CUdeviceptr dstDevice, CUarray srcArray, size_t srcOffset, size_t ByteCount));
CU_PTDS(cuMemcpyHtoA_v2, (CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount));
CU_PTSZ(cuMemcpyHtoAAsync_v2, (CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount, CUstream hStream));
CU_PTDS(cuMemcpyAtoH_v2, (void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount));
CU_PTSZ(cuMemcpyAtoHAsync_v2, (void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount, CUstream hStream));
CU_PTDS(cuMemcpyAtoA_v2, (CUarray dstArray, size_t dstOffset, CUarray srcArray, size_t srcOffset, size_t ByteCount));
CU_PTDS(cuMemcpy2D_v2, (const CUDA_MEMCPY2D *pCopy));
CU_PTDS(cuMemcpy2DUnaligned_v2, (const CUDA_MEMCPY2D *pCopy));
CU_PTSZ(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D *pCopy, CUstream hStream));
CU_PTDS(cuMemcpy3D_v2, (const CUDA_MEMCPY3D *pCopy));
CU_PTSZ(cuMemcpy3DAsync_v2, (const CUDA_MEMCPY3D *pCopy, CUstream hStream));
CU_PTDS(cuMemcpy3DPeer, (const CUDA_MEMCPY3D_PEER *pCopy));
CU_PTSZ(cuMemcpy3DPeerAsync, (const CUDA_MEMCPY3D_PEER *pCopy, CUstream hStream));
CU_PTSZ(cuMemcpyBatchAsync, (CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                             size_t *attrsIdxs, size_t numAttrs, size_t *failIdx, CUstream hStream));
CU_PTSZ(cuMemcpyBatchAsync_v2, (CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                                size_t *attrsIdxs, size_t numAttrs, CUstream hStream));
CU_PTSZ(cuMemcpy3DBatchAsync, (size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, size_t *failIdx, unsigned long long flags, CUstream hStream));
CU_PTSZ(cuMemcpy3DBatchAsync_v2, (size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, unsigned long long flags, CUstream hStream));
CU_PTSZ(cuMemcpyWithAttributesAsync, (CUdeviceptr dst, CUdeviceptr src, size_t size, CUmemcpyAttributes *attr, CUstream hStream));
CU_PTSZ(cuMemcpy3DWithAttributesAsync, (CUDA_MEMCPY3D_BATCH_OP *op, unsigned long long flags, CUstream hStream));
CU_PTDS(cuMemsetD8_v2, (CUdeviceptr dstDevice, unsigned char uc, size_t N));
CU_PTDS(cuMemsetD16_v2, (CUdeviceptr dstDevice, unsigned short us, size_t N));
CU_PTDS(cuMemsetD32_v2, (CUdeviceptr dstDevice, unsigned int ui, size_t N));
CU_PTDS(cuMemsetD2D8_v2, (CUdeviceptr dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height));
CU_PTDS(cuMemsetD2D16_v2, (CUdeviceptr dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height));
CU_PTDS(cuMemsetD2D32_v2, (CUdeviceptr dstDevice, size_t dstPitch, unsigned int ui, size_t Width, size_t Height));
CU_PTSZ(cuMemsetD8Async, (CUdeviceptr dstDevice, unsigned char uc, size_t N, CUstream hStream));
CU_PTSZ(cuMemsetD16Async, (CUdeviceptr dstDevice, unsigned short us, size_t N, CUstream hStream));
CU_PTSZ(cuMemsetD32Async, (CUdeviceptr dstDevice, unsigned int ui, size_t N, CUstream hStream));
CU_PTSZ(cuMemsetD2D8Async, (CUdeviceptr dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height, CUstream hStream));
CU_PTSZ(cuMemsetD2D16Async, (CUdeviceptr dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height, CUstream hStream));
CU_PTSZ(cuMemsetD2D32Async, (CUdeviceptr dstDevice, size_t dstPitch, unsigned int ui, size_t Width, size_t Height, CUstream hStream));

/* --- streams and events ------------------------------------------------------------------------------ */

CUAPI CUresult cuStreamCreate(CUstream *phStream, unsigned int Flags);
CUAPI CUresult cuStreamCreateWithPriority(CUstream *phStream, unsigned int flags, int priority);
CUAPI CUresult cuStreamDestroy(CUstream hStream);
CUAPI CUresult cuStreamDestroy_v2(CUstream hStream);
CU_PTSZ(cuStreamGetPriority, (CUstream hStream, int *priority));
CU_PTSZ(cuStreamGetFlags, (CUstream hStream, unsigned int *flags));
CU_PTSZ(cuStreamGetId, (CUstream hStream, unsigned long long *streamId));
CU_PTSZ(cuStreamGetCtx, (CUstream hStream, CUcontext *pctx));
CU_PTSZ(cuStreamGetDevice, (CUstream hStream, CUdevice *device));
CU_PTSZ(cuStreamQuery, (CUstream hStream));
CU_PTSZ(cuStreamSynchronize, (CUstream hStream));
CU_PTSZ(cuStreamWaitEvent, (CUstream hStream, CUevent hEvent, unsigned int Flags));
CU_PTSZ(cuStreamAddCallback, (CUstream hStream, CUstreamCallback callback, void *userData, unsigned int flags));
CU_PTSZ(cuStreamCopyAttributes, (CUstream dst, CUstream src));
CU_PTSZ(cuStreamGetAttribute, (CUstream hStream, CUstreamAttrID attr, CUstreamAttrValue *value_out));
CU_PTSZ(cuStreamSetAttribute, (CUstream hStream, CUstreamAttrID attr, const CUstreamAttrValue *value));
CU_PTSZ(cuStreamWaitValue32, (CUstream stream, CUdeviceptr addr, cuuint32_t value, unsigned int flags));
CU_PTSZ(cuStreamWaitValue32_v2, (CUstream stream, CUdeviceptr addr, cuuint32_t value, unsigned int flags));
CU_PTSZ(cuStreamWaitValue64, (CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags));
CU_PTSZ(cuStreamWaitValue64_v2, (CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags));
CU_PTSZ(cuStreamWriteValue32, (CUstream stream, CUdeviceptr addr, cuuint32_t value, unsigned int flags));
CU_PTSZ(cuStreamWriteValue32_v2, (CUstream stream, CUdeviceptr addr, cuuint32_t value, unsigned int flags));
CU_PTSZ(cuStreamWriteValue64, (CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags));
CU_PTSZ(cuStreamWriteValue64_v2, (CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags));
CU_PTSZ(cuStreamBatchMemOp, (CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray, unsigned int flags));
CU_PTSZ(cuStreamBatchMemOp_v2, (CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray, unsigned int flags));
CUAPI CUresult cuEventCreate(CUevent *phEvent, unsigned int Flags);
CU_PTSZ(cuEventRecord, (CUevent hEvent, CUstream hStream));
CU_PTSZ(cuEventRecordWithFlags, (CUevent hEvent, CUstream hStream, unsigned int flags));
CUAPI CUresult cuEventQuery(CUevent hEvent);
CUAPI CUresult cuEventSynchronize(CUevent hEvent);
CUAPI CUresult cuEventDestroy(CUevent hEvent);
CUAPI CUresult cuEventDestroy_v2(CUevent hEvent);
CUAPI CUresult cuEventElapsedTime(float *pMilliseconds, CUevent hStart, CUevent hEnd);
CUAPI CUresult cuEventElapsedTime_v2(float *pMilliseconds, CUevent hStart, CUevent hEnd);

/* --- modules, libraries, functions, launches ---------------------------------------------------------- */

CUAPI CUresult cuModuleLoad(CUmodule *module, const char *fname);
CUAPI CUresult cuModuleLoadData(CUmodule *module, const void *image);
CUAPI CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int numOptions, CUjit_option *options, void **optionValues);
CUAPI CUresult cuModuleLoadFatBinary(CUmodule *module, const void *fatCubin);
CUAPI CUresult cuModuleUnload(CUmodule hmod);
CUAPI CUresult cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name);
CUAPI CUresult cuModuleGetFunctionCount(unsigned int *count, CUmodule mod);
CUAPI CUresult cuModuleEnumerateFunctions(CUfunction *functions, unsigned int numFunctions, CUmodule mod);
CUAPI CUresult cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule hmod, const char *name);
CUAPI CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode *mode);
CUAPI CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jitOptions, void **jitOptionsValues,
                                 unsigned int numJitOptions, CUlibraryOption *libraryOptions, void **libraryOptionValues,
                                 unsigned int numLibraryOptions);
CUAPI CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *fileName, CUjit_option *jitOptions, void **jitOptionsValues,
                                     unsigned int numJitOptions, CUlibraryOption *libraryOptions, void **libraryOptionValues,
                                     unsigned int numLibraryOptions);
CUAPI CUresult cuLibraryUnload(CUlibrary library);
CUAPI CUresult cuLibraryGetKernel(CUkernel *pKernel, CUlibrary library, const char *name);
CUAPI CUresult cuLibraryGetKernelCount(unsigned int *count, CUlibrary lib);
CUAPI CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned int numKernels, CUlibrary lib);
CUAPI CUresult cuLibraryGetModule(CUmodule *pMod, CUlibrary library);
CUAPI CUresult cuLibraryGetGlobal(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name);
CUAPI CUresult cuLibraryGetManaged(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name);
CUAPI CUresult cuKernelGetFunction(CUfunction *pFunc, CUkernel kernel);
CUAPI CUresult cuKernelGetLibrary(CUlibrary *pLib, CUkernel kernel);
CUAPI CUresult cuKernelGetName(const char **name, CUkernel hfunc);
CUAPI CUresult cuKernelGetAttribute(int *pi, CUfunction_attribute attrib, CUkernel kernel, CUdevice dev);
CUAPI CUresult cuKernelSetAttribute(CUfunction_attribute attrib, int val, CUkernel kernel, CUdevice dev);
CUAPI CUresult cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache config, CUdevice dev);
CUAPI CUresult cuKernelGetParamInfo(CUkernel kernel, size_t paramIndex, size_t *paramOffset, size_t *paramSize);
CUAPI CUresult cuKernelGetParamCount(CUkernel kernel, size_t *paramCount);
CUAPI CUresult cuFuncGetAttribute(int *pi, CUfunction_attribute attrib, CUfunction hfunc);
CUAPI CUresult cuFuncSetAttribute(CUfunction hfunc, CUfunction_attribute attrib, int value);
CUAPI CUresult cuFuncSetCacheConfig(CUfunction hfunc, CUfunc_cache config);
CUAPI CUresult cuFuncSetSharedMemConfig(CUfunction hfunc, CUsharedconfig config);
CUAPI CUresult cuFuncGetModule(CUmodule *hmod, CUfunction hfunc);
CUAPI CUresult cuFuncGetName(const char **name, CUfunction hfunc);
CUAPI CUresult cuFuncGetParamInfo(CUfunction func, size_t paramIndex, size_t *paramOffset, size_t *paramSize);
CUAPI CUresult cuFuncGetParamCount(CUfunction func, size_t *paramCount);
CUAPI CUresult cuFuncIsLoaded(CUfunctionLoadingState *state, CUfunction function);
CUAPI CUresult cuFuncLoad(CUfunction function);
CUAPI CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *numBlocks, CUfunction func, int blockSize, size_t dynamicSMemSize);
CUAPI CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *numBlocks, CUfunction func, int blockSize,
                                                                    size_t dynamicSMemSize, unsigned int flags);
CUAPI CUresult cuOccupancyMaxPotentialBlockSize(int *minGridSize, int *blockSize, CUfunction func,
                                                CUoccupancyB2DSize blockSizeToDynamicSMemSize, size_t dynamicSMemSize, int blockSizeLimit);
CUAPI CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int *minGridSize, int *blockSize, CUfunction func,
                                                         CUoccupancyB2DSize blockSizeToDynamicSMemSize, size_t dynamicSMemSize,
                                                         int blockSizeLimit, unsigned int flags);
CUAPI CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t *dynamicSmemSize, CUfunction func, int numBlocks, int blockSize);
CU_PTSZ(cuLaunchKernel, (CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ, unsigned int blockDimX,
                         unsigned int blockDimY, unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream,
                         void **kernelParams, void **extra));
CU_PTSZ(cuLaunchKernelEx, (const CUlaunchConfig *config, CUfunction f, void **kernelParams, void **extra));
CU_PTSZ(cuLaunchCooperativeKernel, (CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                                    unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                                    unsigned int sharedMemBytes, CUstream hStream, void **kernelParams));
CUAPI CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *launchParamsList, unsigned int numDevices, unsigned int flags);
CU_PTSZ(cuLaunchHostFunc, (CUstream hStream, CUhostFn fn, void *userData));
CU_PTSZ(cuLaunchHostFunc_v2, (CUstream hStream, CUhostFn fn, void *userData, unsigned int syncMode));

/* --- capture and graphs ------------------------------------------------------------------------------ */

CU_PTSZ(cuStreamBeginCapture_v2, (CUstream hStream, CUstreamCaptureMode mode));
CU_PTSZ(cuStreamBeginCaptureToGraph, (CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies,
                                      const CUgraphEdgeData *dependencyData, size_t numDependencies, CUstreamCaptureMode mode));
CU_PTSZ(cuStreamEndCapture, (CUstream hStream, CUgraph *phGraph));
CU_PTSZ(cuStreamIsCapturing, (CUstream hStream, CUstreamCaptureStatus *captureStatus));
CU_PTSZ(cuStreamGetCaptureInfo_v2, (CUstream hStream, CUstreamCaptureStatus *captureStatus_out, cuuint64_t *id_out,
                                    CUgraph *graph_out, const CUgraphNode **dependencies_out, size_t *numDependencies_out));
CU_PTSZ(cuStreamGetCaptureInfo_v3, (CUstream hStream, CUstreamCaptureStatus *captureStatus_out, cuuint64_t *id_out,
                                    CUgraph *graph_out, const CUgraphNode **dependencies_out,
                                    const CUgraphEdgeData **edgeData_out, size_t *numDependencies_out));
CU_PTSZ(cuStreamUpdateCaptureDependencies, (CUstream hStream, CUgraphNode *dependencies, size_t numDependencies, unsigned int flags));
CU_PTSZ(cuStreamUpdateCaptureDependencies_v2, (CUstream hStream, CUgraphNode *dependencies, const CUgraphEdgeData *dependencyData,
                                               size_t numDependencies, unsigned int flags));
CUAPI CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode);
CUAPI CUresult cuGraphCreate(CUgraph *phGraph, unsigned int flags);
CUAPI CUresult cuGraphDestroy(CUgraph hGraph);
CUAPI CUresult cuGraphClone(CUgraph *phGraphClone, CUgraph originalGraph);
CUAPI CUresult cuGraphAddKernelNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies,
                                    const CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams);
CUAPI CUresult cuGraphAddKernelNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies,
                                       const CUDA_KERNEL_NODE_PARAMS *nodeParams);
CUAPI CUresult cuGraphAddMemcpyNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies,
                                    const CUDA_MEMCPY3D *copyParams, CUcontext ctx);
CUAPI CUresult cuGraphAddMemsetNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies,
                                    const CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx);
CUAPI CUresult cuGraphAddHostNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies,
                                  const CUDA_HOST_NODE_PARAMS *nodeParams);
CUAPI CUresult cuGraphAddChildGraphNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                        size_t numDependencies, CUgraph childGraph);
CUAPI CUresult cuGraphAddEmptyNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies);
CUAPI CUresult cuGraphAddEventRecordNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                         size_t numDependencies, CUevent event);
CUAPI CUresult cuGraphAddEventWaitNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                       size_t numDependencies, CUevent event);
CUAPI CUresult cuGraphAddMemAllocNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies,
                                      CUDA_MEM_ALLOC_NODE_PARAMS *nodeParams);
CUAPI CUresult cuGraphAddMemFreeNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies,
                                     CUdeviceptr dptr);
CUAPI CUresult cuGraphAddNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies,
                              CUgraphNodeParams *nodeParams);
CUAPI CUresult cuGraphAddNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                 const CUgraphEdgeData *dependencyData, size_t numDependencies, CUgraphNodeParams *nodeParams);
CUAPI CUresult cuGraphMemAllocNodeGetParams(CUgraphNode hNode, CUDA_MEM_ALLOC_NODE_PARAMS *params_out);
CUAPI CUresult cuGraphMemFreeNodeGetParams(CUgraphNode hNode, CUdeviceptr *dptr_out);
CUAPI CUresult cuGraphKernelNodeGetParams(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams);
CUAPI CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS *nodeParams);
CUAPI CUresult cuGraphKernelNodeSetParams(CUgraphNode hNode, const CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams);
CUAPI CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode hNode, const CUDA_KERNEL_NODE_PARAMS *nodeParams);
CUAPI CUresult cuGraphMemcpyNodeGetParams(CUgraphNode hNode, CUDA_MEMCPY3D *nodeParams);
CUAPI CUresult cuGraphMemcpyNodeSetParams(CUgraphNode hNode, const CUDA_MEMCPY3D *nodeParams);
CUAPI CUresult cuGraphMemsetNodeGetParams(CUgraphNode hNode, CUDA_MEMSET_NODE_PARAMS *nodeParams);
CUAPI CUresult cuGraphMemsetNodeSetParams(CUgraphNode hNode, const CUDA_MEMSET_NODE_PARAMS *nodeParams);
CUAPI CUresult cuGraphHostNodeGetParams(CUgraphNode hNode, CUDA_HOST_NODE_PARAMS *nodeParams);
CUAPI CUresult cuGraphHostNodeSetParams(CUgraphNode hNode, const CUDA_HOST_NODE_PARAMS *nodeParams);
CUAPI CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode hNode, CUgraph *phGraph);
CUAPI CUresult cuGraphEventRecordNodeGetEvent(CUgraphNode hNode, CUevent *event_out);
CUAPI CUresult cuGraphEventWaitNodeGetEvent(CUgraphNode hNode, CUevent *event_out);
CUAPI CUresult cuGraphNodeGetType(CUgraphNode hNode, CUgraphNodeType *type);
CUAPI CUresult cuGraphNodeFindInClone(CUgraphNode *phNode, CUgraphNode hOriginalNode, CUgraph hClonedGraph);
CUAPI CUresult cuGraphGetNodes(CUgraph hGraph, CUgraphNode *nodes, size_t *numNodes);
CUAPI CUresult cuGraphGetRootNodes(CUgraph hGraph, CUgraphNode *rootNodes, size_t *numRootNodes);
CUAPI CUresult cuGraphGetEdges(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, size_t *numEdges);
CUAPI CUresult cuGraphGetEdges_v2(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *edgeData, size_t *numEdges);
CUAPI CUresult cuGraphNodeGetDependencies(CUgraphNode hNode, CUgraphNode *dependencies, size_t *numDependencies);
CUAPI CUresult cuGraphNodeGetDependencies_v2(CUgraphNode hNode, CUgraphNode *dependencies, CUgraphEdgeData *edgeData, size_t *numDependencies);
CUAPI CUresult cuGraphNodeGetDependentNodes(CUgraphNode hNode, CUgraphNode *dependentNodes, size_t *numDependentNodes);
CUAPI CUresult cuGraphNodeGetDependentNodes_v2(CUgraphNode hNode, CUgraphNode *dependentNodes, CUgraphEdgeData *edgeData,
                                               size_t *numDependentNodes);
CUAPI CUresult cuGraphAddDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, size_t numDependencies);
CUAPI CUresult cuGraphAddDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                         const CUgraphEdgeData *edgeData, size_t numDependencies);
CUAPI CUresult cuGraphRemoveDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, size_t numDependencies);
CUAPI CUresult cuGraphRemoveDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                            const CUgraphEdgeData *edgeData, size_t numDependencies);
CUAPI CUresult cuGraphDestroyNode(CUgraphNode hNode);
CUAPI CUresult cuGraphInstantiate(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize);
CUAPI CUresult cuGraphInstantiate_v2(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize);
CUAPI CUresult cuGraphInstantiateWithFlags(CUgraphExec *phGraphExec, CUgraph hGraph, unsigned long long flags);
CU_PTSZ(cuGraphInstantiateWithParams, (CUgraphExec *phGraphExec, CUgraph hGraph, CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams));
CUAPI CUresult cuGraphExecGetFlags(CUgraphExec hGraphExec, cuuint64_t *flags);
CUAPI CUresult cuGraphExecDestroy(CUgraphExec hGraphExec);
CUAPI CUresult cuGraphExecUpdate(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphNode *hErrorNode_out, CUgraphExecUpdateResult *updateResult_out);
CUAPI CUresult cuGraphExecUpdate_v2(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphExecUpdateResultInfo *resultInfo);
CUAPI CUresult cuGraphExecKernelNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams);
CUAPI CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_KERNEL_NODE_PARAMS *nodeParams);
CUAPI CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMCPY3D *copyParams, CUcontext ctx);
CUAPI CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx);
CUAPI CUresult cuGraphExecHostNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_HOST_NODE_PARAMS *nodeParams);
CU_PTSZ(cuGraphUpload, (CUgraphExec hGraphExec, CUstream hStream));
CU_PTSZ(cuGraphLaunch, (CUgraphExec hGraphExec, CUstream hStream));
CUAPI CUresult cuDeviceGraphMemTrim(CUdevice device);
CUAPI CUresult cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attr, void *value);
CUAPI CUresult cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attr, void *value);

/* --- the rest ---------------------------------------------------------------------------------------- */

CUAPI CUresult cuProfilerStart(void);
CUAPI CUresult cuProfilerStop(void);

#endif
