/* mps.c: a process in a share of tier mps is the client of its card's MPS server, or gets no GPU. */
#define _GNU_SOURCE
#include "session.h"

#include <stdlib.h>
#include <string.h>

#define PIPE    "CUDA_MPS_PIPE_DIRECTORY"
#define PERCENT "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
#define PER_CTX "CUDA_MPS_ENABLE_PER_CTX_DEVICE_MULTIPROCESSOR_PARTITIONING"

static bool of_mps(const struct share *s) { return load_relaxed(&s->policy->flags) & KERF_POLICY_MPS; }

static bool any_mps(const struct share *shares, int nshares)
{
	for (int i = 0; i < nshares; i++)
		if (of_mps(&shares[i]))
			return true;
	return false;
}

/* What the tenant wrote stands where it is less. The server's own limit, of all its clients, is a second wall. */
static void set_percent(uint32_t cores)
{
	const char *own = getenv(PERCENT);
	char text[16];
	double asked = own ? atof(own) : 0;

	unsetenv(PER_CTX); /* with it a context could be given more than its process has */
	if (cores < 1 || cores > 100 || (asked > 0 && asked <= cores))
		return;
	kerf_format(text, sizeof text, "%u", cores);
	setenv(PERCENT, text, 1);
}

/* The driver finds the server in cuInit, by a variable which is put back after. The percentage stays: it is not told until when
 * all drivers read it. */
CUresult kerf_init_mps(real_on_init real, unsigned flags, const struct share *shares, int nshares)
{
	const char *own;
	char *before;
	CUresult r;

	if (!any_mps(shares, nshares))
		return kerf_init_visible(real, flags, shares, nshares);
	own = getenv(PIPE);
	before = own ? strdup(own) : NULL;
	if (own && !before)
		return CUDA_ERROR_OUT_OF_MEMORY;
	setenv(PIPE, KERF_ROOT "/mps", 1);
	set_percent(load_relaxed(&shares[0].policy->device[0].cores));
	r = kerf_init_visible(real, flags, shares, nshares);
	if (before)
		setenv(PIPE, before, 1);
	else
		unsetenv(PIPE);
	free(before);
	return r;
}

/* Fails closed: a driver that finds no server goes on without, and then nothing holds the process to its cores. One that cannot
 * say whether it has found one (before CUDA 12.1) is believed. */
bool kerf_check_mps(const struct share *shares, int nshares, char *why, size_t len)
{
	int on = 0;

	if (!any_mps(shares, nshares))
		return true;
	if (nshares > 1) {
		kerf_format(why, len, "a share of tier mps is beside others in this container, and a program is the client of one MPS server: no GPU is given; put them in containers of their own");
		return false;
	}
	if (!REAL(cuDeviceGetAttribute) || REAL(cuDeviceGetAttribute)(&on, CU_DEVICE_ATTRIBUTE_MPS_ENABLED, 0) || on)
		return true;
	kerf_format(why, len, "this share is of tier mps, and no MPS server answers at " KERF_ROOT "/mps: without one its cores do not hold, so no GPU is given; kerfd starts a daemon that died again in seconds (kerf explain), so start the program again");
	return false;
}
