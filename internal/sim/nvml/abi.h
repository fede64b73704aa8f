/* abi.h: NVML's binary interface, as far as the simulated library serves it, in our own words.
 *
 * Types have our names (nv_…), so that a test can include NVIDIA's header beside this one and compare
 * layouts (layout_test.c is made by internal/sim's tests). Functions have NVML's names and are defined
 * straight away: nobody here calls them, so there are no prototypes to keep.
 *
 * A struct that starts with `version` carries its own size and number; version_is tells whether it is the
 * one that we know.
 */
#ifndef KERF_SIM_NVML_ABI_H
#define KERF_SIM_NVML_ABI_H

#include <stdint.h>

#define NVML __attribute__((visibility("default")))

enum nv_return {
	NV_SUCCESS = 0, NV_UNINITIALIZED = 1, NV_INVALID_ARGUMENT = 2, NV_NOT_SUPPORTED = 3, NV_NO_PERMISSION = 4,
	NV_NOT_FOUND = 6, NV_INSUFFICIENT_SIZE = 7, NV_DRIVER_NOT_LOADED = 9, NV_TIMEOUT = 10, NV_FUNCTION_NOT_FOUND = 13,
	NV_GPU_IS_LOST = 15, NV_LIB_RM_VERSION_MISMATCH = 18, NV_IN_USE = 19, NV_MEMORY = 20, NV_INSUFFICIENT_RESOURCES = 23, NV_VERSION_MISMATCH = 25, NV_UNKNOWN = 999
};
typedef enum nv_return nv_return;

#define version_is(v, type, n) ((v) == (unsigned)(sizeof(type) | (unsigned)(n) << 24))

typedef struct handle *nv_device;      /* also of MIG devices */
typedef struct handle *nv_gpu_instance;
typedef struct handle *nv_compute_instance;
typedef struct event_set *nv_event_set;

struct nv_pci {
	char bus_id_legacy[16]; /* 0000:1B:00.0 */
	unsigned domain, bus, device, pci_id, subsystem_id;
	char bus_id[32];        /* 00000000:1B:00.0 */
};

struct nv_memory { unsigned long long total, free, used; };
struct nv_memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
struct nv_bar1 { unsigned long long total, free, used; };
struct nv_utilization { unsigned gpu, memory; };

struct nv_process_v1 { unsigned pid; unsigned long long used; };
struct nv_process { unsigned pid; unsigned long long used; unsigned gi, ci; };
struct nv_process_sample { unsigned pid; unsigned long long time_us; unsigned sm, mem, enc, dec; };

struct nv_event { nv_device device; unsigned long long type, data; unsigned gi, ci; };

union nv_value { double d; int i; unsigned u; unsigned long ul; unsigned long long ull; long long ll; };
enum { NV_VALUE_UINT = 1, NV_VALUE_ULL = 3 };
struct nv_field {
	unsigned id, scope;
	long long time_us, latency_us;
	unsigned type;
	nv_return result;
	union nv_value value;
};

struct nv_ecc_counts { unsigned long long l1, l2, device, registers; };
struct nv_sram_v1 {
	unsigned version;
	unsigned long long aggregate_parity, aggregate_secded, aggregate_corrected;
	unsigned long long volatile_parity, volatile_secded, volatile_corrected;
	unsigned long long bucket_l2, bucket_sm, bucket_pcie, bucket_mcu, bucket_other;
	unsigned threshold_exceeded;
};
struct nv_row_histogram { unsigned max, high, partial, low, none; };
struct nv_temperature_v1 { unsigned version, sensor; int celsius; };
struct nv_uuid_v1 { unsigned version, type; union { char text[41]; unsigned char bytes[16]; } value; };

struct nv_placement { unsigned start, size; };
struct nv_gi_profile {
	unsigned id, p2p, slices, count, sms, copy_engines, decoders, encoders, jpegs, ofas;
	unsigned long long memory_mb;
};
struct nv_gi_profile_v2 {
	unsigned version, id, p2p, slices, count, sms, copy_engines, decoders, encoders, jpegs, ofas;
	unsigned long long memory_mb;
	char name[96];
};
struct nv_gi_profile_v3 {
	unsigned version, id, slices, count, sms, copy_engines, decoders, encoders, jpegs, ofas;
	unsigned long long memory_mb;
	char name[96];
	unsigned capabilities;
};
struct nv_gi_info { nv_device device; unsigned id, profile; struct nv_placement placement; };
struct nv_ci_info { nv_device device; nv_gpu_instance gi; unsigned id, profile; struct nv_placement placement; };
struct nv_ci_profile { unsigned id, slices, count, sms, copy_engines, decoders, encoders, jpegs, ofas; };
struct nv_ci_profile_v2 {
	unsigned version, id, slices, count, sms, copy_engines, decoders, encoders, jpegs, ofas;
	char name[96];
};
struct nv_ci_profile_v3 {
	unsigned version, id, slices, count, sms, copy_engines, decoders, encoders, jpegs, ofas;
	char name[96];
	unsigned capabilities;
};
struct nv_attributes {
	unsigned sms, copy_engines, decoders, encoders, jpegs, ofas, gi_slices, ci_slices;
	unsigned long long memory_mb;
};

#endif
