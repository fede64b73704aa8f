/* caps.c: the files by which a process may use a MIG instance, where the kernel driver has them:
 *
 *   R/proc/driver/nvidia/capabilities/gpuN/mig/giM/access        the number of the capability
 *   R/proc/driver/nvidia/capabilities/gpuN/mig/giM/ciK/access
 *   R/dev/nvidia-caps/nvidia-capX                                in the place of its device node
 *
 * They come before their instance and go after it. What a death leaves behind, the next instance in that place takes over.
 */
#define _GNU_SOURCE
#include "node.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

bool may(unsigned cap) { return sim_may(node.root, cap); }

struct cap { unsigned number; char node[SIM_PATH], dir[SIM_PATH]; };

static struct cap cap_of(unsigned minor, unsigned gi, int ci)
{
	struct cap c = { .number = ci < 0 ? SIM_CAP_GI(minor, gi) : SIM_CAP_CI(minor, gi, (unsigned)ci) };
	snprintf(c.node, sizeof c.node, "%s/dev/nvidia-caps/nvidia-cap%u", node.root, c.number);
	int n = snprintf(c.dir, sizeof c.dir, "%s/proc/driver/nvidia/capabilities/gpu%u/mig/gi%u", node.root, minor, gi);
	if (ci >= 0 && n < (int)sizeof c.dir)
		snprintf(c.dir + n, sizeof c.dir - (size_t)n, "/ci%d", ci);
	return c;
}

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0444);
	if (fd < 0)
		return false;
	bool ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text) && fchmod(fd, 0444) == 0; /* whatever the umask */
	close(fd);
	return ok;
}

/* The directory and those above it, below the root. */
static bool make_dir(const char *dir)
{
	char path[SIM_PATH];
	snprintf(path, sizeof path, "%s", dir);
	for (char *p = path + strlen(node.root) + 1; (p = strchr(p, '/')) != NULL; *p++ = '/') {
		*p = 0;
		if (mkdir(path, 0755) != 0 && errno != EEXIST)
			return false;
	}
	return mkdir(path, 0755) == 0 || errno == EEXIST;
}

bool cap_put(unsigned minor, unsigned gi, int ci)
{
	struct cap c = cap_of(minor, gi, ci);
	char path[SIM_PATH + 8], text[96];
	snprintf(path, sizeof path, "%s/access", c.dir);
	snprintf(text, sizeof text, "DeviceFileMinor: %u\nDeviceFileMode: 444\nDeviceFileModify: 1\n", c.number);
	/* One of a dead maker may be there, and its owner's alone to write. */
	unlink(path);
	unlink(c.node);
	return make_dir(c.dir) && write_file(path, text) && write_file(c.node, "");
}

void cap_drop(unsigned minor, unsigned gi, int ci)
{
	struct cap c = cap_of(minor, gi, ci);
	char path[SIM_PATH + 8];
	snprintf(path, sizeof path, "%s/access", c.dir);
	unlink(c.node);
	unlink(path);
	rmdir(c.dir);
}
