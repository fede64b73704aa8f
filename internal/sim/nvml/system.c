/* system.c: starting and stopping the library, versions, error texts. */
#define _GNU_SOURCE
#include "node.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned references;

/* The mark by which Kerf tells this library from NVIDIA's. */
NVML const char kerfSimulatedNVML[] = "simulated by Kerf";

bool initialized(void) { return __atomic_load_n(&references, __ATOMIC_ACQUIRE) > 0; }

NVML nv_return nvmlInitWithFlags(unsigned flags)
{
	(void)flags;
	pthread_mutex_lock(&lock);
	nv_return r = node_open();
	if (r == NV_SUCCESS)
		__atomic_store_n(&references, references + 1, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&lock);
	return r;
}

NVML nv_return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
NVML nv_return nvmlInit(void) { return nvmlInitWithFlags(0); }

NVML nv_return nvmlShutdown(void)
{
	pthread_mutex_lock(&lock);
	nv_return r = references ? NV_SUCCESS : NV_UNINITIALIZED;
	if (references)
		__atomic_store_n(&references, references - 1, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&lock);
	return r;
}

NVML nv_return nvmlSystemGetDriverVersion(char *version, unsigned length)
{
	return initialized() ? copy_text(node.ctl->driver_version, version, length) : NV_UNINITIALIZED;
}

NVML nv_return nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
	return initialized() ? copy_text(node.ctl->nvml_version, version, length) : NV_UNINITIALIZED;
}

NVML nv_return nvmlSystemGetCudaDriverVersion(int *version)
{
	if (!initialized())
		return NV_UNINITIALIZED;
	if (!version)
		return NV_INVALID_ARGUMENT;
	*version = (int)node.ctl->cuda_version;
	return NV_SUCCESS;
}

NVML nv_return nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

NVML nv_return nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length)
{
	char path[32], line[4096] = "";
	if (!initialized())
		return NV_UNINITIALIZED;
	if (!name || !length)
		return NV_INVALID_ARGUMENT;
	snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
	FILE *f = fopen(path, "re");
	if (!f)
		return NV_NOT_FOUND;
	size_t n = fread(line, 1, sizeof line - 1, f);
	fclose(f);
	line[n] = 0;
	snprintf(name, length, "%s", line); /* NVML cuts a long name */
	return NV_SUCCESS;
}

NVML nv_return nvmlGetExcludedDeviceCount(unsigned *count)
{
	if (!count)
		return NV_INVALID_ARGUMENT;
	*count = 0;
	return NV_SUCCESS;
}

NVML nv_return nvmlUnitGetCount(unsigned *count)
{
	if (!initialized())
		return NV_UNINITIALIZED;
	if (!count)
		return NV_INVALID_ARGUMENT;
	*count = 0;
	return NV_SUCCESS;
}

NVML const char *nvmlErrorString(nv_return result)
{
	static const struct { int code; const char *text; } texts[] = {
		{ 0, "Success" }, { 1, "NVML is not initialized" }, { 2, "Invalid argument" }, { 3, "Not supported" },
		{ 4, "No permission" }, { 5, "Already initialized" }, { 6, "Not found" }, { 7, "Buffer too small" },
		{ 8, "External power cable is missing" }, { 9, "Driver is not loaded" }, { 10, "Timeout" }, { 11, "Interrupt problem" },
		{ 12, "Library not found" }, { 13, "Function not found" }, { 14, "infoROM is corrupt" }, { 15, "GPU is lost" },
		{ 16, "GPU needs a reset" }, { 17, "Operating system refused" }, { 18, "Driver and library versions differ" },
		{ 19, "In use" }, { 20, "Out of memory" }, { 21, "No data" }, { 22, "Not supported with ECC by vGPU" },
		{ 23, "Out of resources" }, { 24, "Frequency not supported" }, { 25, "Struct version differs" }, { 26, "Deprecated" },
		{ 27, "Not ready" }, { 28, "GPU not found" }, { 29, "Invalid state" }, { 999, "Unknown error" },
	};
	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
		if (texts[i].code == (int)result)
			return texts[i].text;
	return "Unknown error code";
}
