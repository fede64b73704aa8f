/* door.h: the end of swap.c in a library built for tests alone (-DKERF_SWAP_DOOR, door.map): what kerfd will ask for can be
 * asked for by the program under test, and any step of a move can fail or be the process's last.
 */
#include <signal.h>
#include <stdlib.h>

#define DOOR __attribute__((visibility("default")))

static long fail_in, kill_in; /* steps from now; 0: never */
static uint64_t steps;

bool swap_step_fails(void)
{
	steps++;
	if (kill_in && --kill_in == 0)
		kill(getpid(), SIGKILL);
	return fail_in && --fail_in == 0;
}

DOOR CUresult kerf_door_out(int ordinal, uint64_t bytes, uint64_t *moved) { return kerf_swap_out(kerf_device(ordinal), bytes, moved); }
DOOR CUresult kerf_door_in(int ordinal, uint64_t bytes, uint64_t *moved) { return kerf_swap_in(kerf_device(ordinal), bytes, moved); }
DOOR void kerf_door_look(int ordinal, struct swap_counts *out) { kerf_swap_look(kerf_device(ordinal), out); }
DOOR bool kerf_door_give(int fd, uint64_t bytes) { return kerf_host_give(fd, bytes); }
DOOR bool kerf_door_whole(int ordinal) { return kerf_swap_whole(kerf_device(ordinal)); }
DOOR void kerf_door_trim(void) { kerf_host_trim(); }
DOOR void kerf_door_arbiter(const struct swap_arbiter *a) { kerf_swap_arbiter = a; }

/* Returns how many steps there have been since the last call. */
DOOR uint64_t kerf_door_steps(long fail, long last)
{
	uint64_t n = steps;

	steps = 0;
	fail_in = fail;
	kill_in = last;
	return n;
}
