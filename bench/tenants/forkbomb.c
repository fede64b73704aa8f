/* forkbomb: many short processes that start CUDA, allocate, and end or are killed; afterwards as much must
 * be free as before.
 *
 * The parent itself never starts CUDA: each child is this program again, by exec, as a shell would do. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "options.h"
#include "tenant.h"

struct plan {
	uint64_t processes, parallel, killed, memory, seed;
	double settle, lifetime; /* seconds; lifetime: of a process that does next to nothing */
	int json, nowhere; /* nowhere: /dev/null, for what the children would say */
};

struct tally { uint64_t started, finished, killed, failed; };

struct child {
	pid_t pid;
	double kill_at; /* 0: let it end */
};

/* --- a child ------------------------------------------------------------------------------------------- */

static int run_child(uint64_t memory, uint32_t seed)
{
	struct tenant tenant = {0};
	struct holding held = {.touched = 64 << 10};
	tenant_open(&tenant, "forkbomb child");
	holding_take(&tenant, &held, memory, seed);
	tenant_spin(&tenant, NULL, 1000);
	int wrong = holding_verify(&tenant, &held);
	if (seed % 2) /* half of them leave it to the driver */
		holding_release(&tenant, &held);
	return wrong != 0;
}

/* Prints the free bytes and whether the card is simulated, for the parent. */
static int run_look(void)
{
	struct tenant tenant = {0};
	tenant_open(&tenant, "forkbomb look");
	printf("%zu %d\n", tenant.free_at_start, tenant.simulated);
	tenant_close(&tenant);
	return 0;
}

/* --- the parent ---------------------------------------------------------------------------------------- */

static void fail(const char *what)
{
	fprintf(stderr, "forkbomb: %s: %s\n", what, strerror(errno));
	exit(1);
}

static pid_t start_self(char *const argv[], int output)
{
	pid_t pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid > 0)
		return pid;
	dup2(output, STDOUT_FILENO);
	execv("/proc/self/exe", argv);
	_exit(127);
}

static size_t look(int *simulated)
{
	char *argv[] = {"forkbomb", "--role", "look", NULL};
	int ends[2], status;
	size_t free_bytes;
	if (pipe2(ends, O_CLOEXEC) < 0)
		fail("pipe");
	pid_t pid = start_self(argv, ends[1]);
	close(ends[1]);
	FILE *from = fdopen(ends[0], "r");
	int got = fscanf(from, "%zu %d", &free_bytes, simulated);
	fclose(from);
	if (waitpid(pid, &status, 0) != pid || status != 0 || got != 2) {
		fprintf(stderr, "forkbomb: a process that looks at the free memory failed (status %d)\n", status);
		exit(1);
	}
	return free_bytes;
}

static uint32_t next_random(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(*seed >> 33);
}

static void start_child(struct plan *plan, struct child *child, struct tally *tally)
{
	char memory[32], seed[32];
	snprintf(memory, sizeof memory, "%llu", (unsigned long long)plan->memory);
	snprintf(seed, sizeof seed, "%u", next_random(&plan->seed) & 0xffffff);
	char *argv[] = {"forkbomb", "--role", "child", "--memory", memory, "--seed", seed, NULL};
	child->pid = start_self(argv, plan->nowhere);
	int doomed = next_random(&plan->seed) % 100 < plan->killed;
	/* Anywhere from before cuInit to the end. */
	child->kill_at = doomed ? now_seconds() + plan->lifetime * (next_random(&plan->seed) % 1000) * 1e-3 : 0;
	tally->started++;
}

static void bury(struct child *child, int status, struct tally *tally)
{
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && child->kill_at != 0)
		tally->killed++;
	else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		tally->finished++;
	else
		tally->failed++;
	child->pid = 0;
}

/* Kills who is due, buries who is dead. Returns how many live. */
static uint64_t tend(struct child *children, uint64_t count, struct tally *tally)
{
	uint64_t living = 0;
	for (uint64_t i = 0; i < count; i++) {
		int status;
		if (children[i].pid == 0)
			continue;
		if (children[i].kill_at != 0 && now_seconds() >= children[i].kill_at)
			kill(children[i].pid, SIGKILL);
		if (waitpid(children[i].pid, &status, WNOHANG) == children[i].pid)
			bury(&children[i], status, tally);
		else
			living++;
	}
	return living;
}

static struct tally run_children(struct plan *plan)
{
	struct tally tally = {0};
	struct child *children = calloc(plan->parallel, sizeof *children);
	if (!children)
		fail("room for the children");
	while (tend(children, plan->parallel, &tally) > 0 || (tally.started < plan->processes && !tenant_stop)) {
		for (uint64_t i = 0; i < plan->parallel; i++)
			if (children[i].pid == 0 && tally.started < plan->processes && !tenant_stop)
				start_child(plan, &children[i], &tally);
		sleep_seconds(0.001);
	}
	free(children);
	return tally;
}

static int report(const struct plan *plan, const struct tally *tally, size_t before, size_t after, int simulated)
{
	struct tenant tenant = {.name = "forkbomb", .json = plan->json, .simulated = simulated};
	int bad = tally->failed != 0 || after < before;
	char text[240];
	snprintf(text, sizeof text, "forkbomb: %llu processes, %llu finished, %llu killed, %llu failed; free before %s, after %s%s",
	         (unsigned long long)tally->started, (unsigned long long)tally->finished, (unsigned long long)tally->killed,
	         (unsigned long long)tally->failed, human_bytes(before), human_bytes(after), after < before ? ": LEAKED" : "");
	tenant_say(&tenant, "report", text,
	           "\"processes\":%llu,\"finished\":%llu,\"killed\":%llu,\"failed\":%llu,\"before\":%zu,\"after\":%zu",
	           (unsigned long long)tally->started, (unsigned long long)tally->finished, (unsigned long long)tally->killed,
	           (unsigned long long)tally->failed, before, after);
	return bad;
}

/* The memory of a killed process is back when the driver and kerfd have seen its end, not before. */
static size_t look_until(size_t wanted, double seconds, int *simulated)
{
	double end = now_seconds() + seconds;
	size_t free_bytes = look(simulated);
	while (free_bytes < wanted && now_seconds() < end) {
		sleep_seconds(0.02);
		free_bytes = look(simulated);
	}
	return free_bytes;
}

int main(int argc, char **argv)
{
	struct plan plan = {.processes = 64, .parallel = 8, .killed = 50, .memory = 16 << 20, .seed = 1, .settle = 2};
	const char *role = NULL;
	int simulated = 0;
	const struct option_row rows[] = {
		{"processes", OPTION_COUNT, &plan.processes, "how many in all (64)"},
		{"parallel", OPTION_COUNT, &plan.parallel, "how many at a time (8)"},
		{"killed", OPTION_COUNT, &plan.killed, "percent of them that are killed with SIGKILL (50)"},
		{"memory", OPTION_BYTES, &plan.memory, "bytes that each holds (16Mi)"},
		{"seed", OPTION_COUNT, &plan.seed, "of who is killed and when (1)"},
		{"settle", OPTION_NUMBER, &plan.settle, "seconds in which all memory must be back (2)"},
		{"role", OPTION_WORD, &role, "for itself: child or look"},
		{"json", OPTION_FLAG, &plan.json, "lines of JSON"},
	};
	options_read(argc, argv, "many short processes, some of them killed", rows, sizeof rows / sizeof rows[0]);
	if (role && strcmp(role, "look") == 0)
		return run_look();
	if (role && strcmp(role, "child") == 0)
		return run_child(plan.memory, (uint32_t)plan.seed);
	if (role || plan.parallel == 0 || plan.killed > 100) {
		fprintf(stderr, "forkbomb: --role is child or look, --parallel at least 1, --killed at most 100\n");
		return 2;
	}
	tenant_stop_on_signals();
	plan.nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (plan.nowhere < 0)
		fail("/dev/null");
	double start = now_seconds();
	size_t before = look(&simulated);
	plan.lifetime = now_seconds() - start;
	struct tally tally = run_children(&plan);
	size_t after = look_until(before, plan.settle, &simulated);
	return report(&plan, &tally, before, after, simulated);
}
