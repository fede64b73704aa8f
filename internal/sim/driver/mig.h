/* mig.h: what the simulated libcuda and the simulated NVML both do with MIG instances. See state.h for the rules. */
#ifndef KERF_SIM_MIG_H
#define KERF_SIM_MIG_H

#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#define SIM_PATH 4200 /* of a file below a root of PATH_MAX at most */

/* The lock of a GPU's instances, as the descriptor that holds it; −1: there is none to be had. It belongs to the open file and not
 * to the process, so threads exclude each other too, and it goes when its holder dies. */
static inline int sim_mig_lock(const char *root, unsigned minor)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = SIM_MIG_LOCK, .l_len = 1 };
	char path[SIM_PATH];
	snprintf(path, sizeof path, "%s/dev/nvidia%u", root, minor);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	while (fd >= 0 && fcntl(fd, F_OFD_SETLKW, &fl) != 0)
		if (errno != EINTR) {
			close(fd);
			return -1;
		}
	return fd;
}

/* Said and not left to close: a child forked meanwhile has the descriptor too. */
static inline void sim_mig_unlock(int fd)
{
	struct flock fl = { .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = SIM_MIG_LOCK, .l_len = 1 };
	fcntl(fd, F_OFD_SETLK, &fl);
	close(fd);
}

/* Whether this process holds a capability: whether it can open the file that stands for it. */
static inline bool sim_may(const char *root, unsigned cap)
{
	char path[SIM_PATH];
	snprintf(path, sizeof path, "%s/dev/nvidia-caps/nvidia-cap%u", root, cap);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static inline bool sim_instance(const struct sim_mig_instance *in) { return __atomic_load_n(&in->used, __ATOMIC_ACQUIRE); }

/* Instance `in` is a MIG device: it has its compute instance. */
static inline bool sim_mig_device(const struct sim_mig_instance *in)
{
	return sim_instance(in) && __atomic_load_n(&in->compute, __ATOMIC_ACQUIRE);
}

/* It is one that this process may use. */
static inline bool sim_mig_usable(const char *root, const struct sim_gpu *gpu, const struct sim_mig_instance *in)
{
	unsigned minor = gpu->facts.minor;
	return sim_mig_device(in) && sim_may(root, SIM_CAP_GI(minor, in->gi)) && sim_may(root, SIM_CAP_CI(minor, in->gi, in->ci));
}

#endif
