/* control.c: nvidia-cuda-mps-control of a simulated node.
 *
 *   nvidia-cuda-mps-control -f    is the control daemon, in the foreground
 *   nvidia-cuda-mps-control -d    likewise, in the background
 *   nvidia-cuda-mps-control       sends the commands on its input to the daemon, and prints the answers
 *
 * The environment decides as with NVIDIA's: CUDA_MPS_PIPE_DIRECTORY and CUDA_MPS_LOG_DIRECTORY, and of CUDA_VISIBLE_DEVICES the
 * first GPU is the one that is served. It knows the commands in command.c and no others.
 *
 * A server is a child that does nothing: its part, that kernels run at once, is played by the simulated driver in each client.
 * Clients get the end of a pipe that hangs up when it dies. There is one server at a time, of one user: clients of another wait
 * until it has no client, and then it makes room. A limit that is set for a server counts for those who come afterwards.
 */
#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_CLIENTS 512

struct limits defaults = { 100, 0 }, limits;
struct server server = { 0, 0, -1 };
struct client client[MAX_CLIENTS];
int clients;
bool over;
static int listener = -1, note_fd = 2;
static char gpu[64] = "all";

static const char *dir_of(const char *name, const char *otherwise)
{
	const char *dir = getenv(name);
	return dir && *dir ? dir : otherwise;
}

static const char *pipe_dir(void) { return dir_of("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"); }

void note(const char *form, ...)
{
	va_list args;
	char text[512], line[640];
	va_start(args, form);
	vsnprintf(text, sizeof text, form, args);
	va_end(args);
	int n = snprintf(line, sizeof line, "[%ld simulated] %s\n", (long)time(NULL), text);
	if (write(note_fd, line, (size_t)n) < 0) { /* a full disk takes the log, not the service */ }
}

static int complain(const char *what)
{
	fprintf(stderr, "nvidia-cuda-mps-control (simulated): %s: %s\n", what, strerror(errno));
	return 1;
}

/* --- the server -------------------------------------------------------------------------------------- */

static int served(void)
{
	int n = 0;
	for (int i = 0; i < clients; i++)
		n += client[i].served;
	return n;
}

bool start_server(uid_t uid)
{
	int ends[2];
	pid_t self = getpid();
	if (server.pid || pipe2(ends, O_CLOEXEC) != 0)
		return false;
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_NAME, "nvidia-cuda-mps");
		signal(SIGTERM, SIG_DFL);
		close(ends[0]);
		close(listener);
		for (int i = 0; i < clients; i++)
			close(client[i].fd);
		while (getppid() == self)
			pause();
		_exit(0);
	}
	close(ends[1]);
	if (pid < 0) {
		close(ends[0]);
		return false;
	}
	server.pid = pid;
	server.uid = uid;
	server.lifeline = ends[0];
	limits = defaults;
	note("server %d started for user %u: %u%% of the threads, %llu bytes a client (0: all)", pid, uid, limits.percent, limits.bytes);
	return true;
}

static void server_ended(void)
{
	int status;
	if (!server.pid || waitpid(server.pid, &status, WNOHANG) != server.pid)
		return;
	note("server %d has ended", server.pid);
	close(server.lifeline);
	server.pid = 0;
	server.lifeline = -1;
	for (int i = 0; i < clients; i++)
		client[i].served = false; /* their work is lost; they hear it by the lifeline */
}

void stop_server(void)
{
	if (server.pid) {
		kill(server.pid, SIGKILL);
		while (waitpid(server.pid, NULL, 0) < 0 && errno == EINTR)
			;
		close(server.lifeline);
		server.pid = 0;
	}
}

/* --- clients ----------------------------------------------------------------------------------------- */

static void welcome(struct client *c)
{
	char text[256], control[CMSG_SPACE(sizeof(int))];
	struct iovec io = { text, 0 };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	memset(control, 0, sizeof control);
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(h), &server.lifeline, sizeof(int));
	io.iov_len = (size_t)snprintf(text, sizeof text, "server %d %u %llu %s", server.pid, limits.percent, limits.bytes, gpu);
	c->asks = false;
	c->served = sendmsg(c->fd, &m, MSG_NOSIGNAL) > 0;
	note("client %d of user %u", c->who.pid, c->who.uid);
}

/* Serves whom it can. The rest waits for the server of another user to end. */
static void serve_clients(void)
{
	for (int i = 0; i < clients; i++) {
		if (!client[i].asks)
			continue;
		if (server.pid && server.uid != client[i].who.uid && !served())
			stop_server();
		if (!server.pid && !start_server(client[i].who.uid))
			continue;
		if (server.uid == client[i].who.uid)
			welcome(&client[i]);
	}
}

/* --- the daemon -------------------------------------------------------------------------------------- */

static void hear(struct client *c)
{
	char line[LINE], out[LINE];
	ssize_t n = recv(c->fd, line, sizeof line - 1, 0);
	if (n <= 0) {
		close(c->fd);
		c->fd = -1;
		return;
	}
	line[n] = 0;
	if (!strcmp(line, "client")) {
		c->asks = true;
		return;
	}
	if (c->who.uid != 0 && c->who.uid != geteuid())
		strcpy(out, "simulated: only the user of the daemon may command it\n");
	else
		command(line, out);
	send(c->fd, out, strlen(out) + 1, MSG_NOSIGNAL);
}

static void let_in(void)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	socklen_t size = sizeof(struct ucred);
	if (fd < 0 || clients == MAX_CLIENTS) {
		close(fd);
		return;
	}
	struct client *c = &client[clients++];
	memset(c, 0, sizeof *c);
	c->fd = fd;
	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c->who, &size);
}

static void forget_gone(void)
{
	int kept = 0;
	for (int i = 0; i < clients; i++)
		if (client[i].fd >= 0)
			client[kept++] = client[i];
	clients = kept;
}

static void on_term(int signal)
{
	(void)signal;
	over = true;
}

static void loop(void)
{
	struct pollfd p[MAX_CLIENTS + 2];
	while (!over) {
		int n = clients;
		p[0] = (struct pollfd){ .fd = listener, .events = POLLIN };
		p[1] = (struct pollfd){ .fd = server.pid ? server.lifeline : -1 };
		for (int i = 0; i < n; i++)
			p[i + 2] = (struct pollfd){ .fd = client[i].fd, .events = POLLIN };
		if (poll(p, (nfds_t)n + 2, 1000) < 0)
			continue; /* a signal: is it over? */
		for (int i = 0; i < n && !over; i++)
			if (p[i + 2].revents)
				hear(&client[i]);
		if (p[0].revents)
			let_in();
		forget_gone();
		server_ended();
		serve_clients();
	}
	stop_server();
}

static int write_pid(void)
{
	char path[256];
	snprintf(path, sizeof path, "%s/nvidia-cuda-mps-control.pid", pipe_dir());
	FILE *f = fopen(path, "w");
	if (!f)
		return complain(path);
	fprintf(f, "%d\n", getpid());
	return fclose(f) ? complain(path) : 0;
}

static int listen_at(struct sockaddr_un *a)
{
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (connect(listener, (struct sockaddr *)a, sizeof *a) == 0) {
		fprintf(stderr, "nvidia-cuda-mps-control (simulated): an instance of this daemon is running already\n");
		return 1;
	}
	unlink(a->sun_path);
	close(listener);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (bind(listener, (struct sockaddr *)a, sizeof *a) != 0 || chmod(a->sun_path, 0666) != 0 || listen(listener, 64) != 0)
		return complain(a->sun_path);
	return 0;
}

static int daemon_main(struct sockaddr_un *a, bool background)
{
	char path[256];
	const char *devices = getenv("CUDA_VISIBLE_DEVICES");
	struct sigaction term = { .sa_handler = on_term };
	if (devices && *devices)
		snprintf(gpu, sizeof gpu, "%.*s", (int)strcspn(devices, ","), devices);
	if (mkdir(pipe_dir(), 0755) != 0 && errno != EEXIST)
		return complain(pipe_dir());
	snprintf(path, sizeof path, "%s/control.log", dir_of("CUDA_MPS_LOG_DIRECTORY", "/tmp"));
	if ((note_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) < 0)
		return complain(path);
	if (background && daemon(1, 1) != 0)
		return complain("go to the background");
	sigaction(SIGTERM, &term, NULL);
	sigaction(SIGINT, &term, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (listen_at(a) || write_pid())
		return 1;
	note("simulated control daemon %d serves GPU %s", getpid(), gpu);
	loop();
	unlink(a->sun_path);
	snprintf(path, sizeof path, "%s/nvidia-cuda-mps-control.pid", pipe_dir());
	unlink(path);
	note("simulated control daemon has ended");
	return 0;
}

/* --- the command line -------------------------------------------------------------------------------- */

static int client_main(struct sockaddr_un *a)
{
	char line[LINE], out[LINE];
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (connect(fd, (struct sockaddr *)a, sizeof *a) != 0) {
		fprintf(stderr, "Cannot find MPS control daemon process (simulated): %s\n", a->sun_path);
		return 1;
	}
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!*line)
			continue;
		if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0)
			return complain(line);
		ssize_t n = recv(fd, out, sizeof out - 1, 0);
		if (n <= 0)
			return strncmp(line, "quit", 4) ? complain(line) : 0;
		fputs(out, stdout);
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	const char *flag = argc > 1 ? argv[1] : "";
	if (snprintf(a.sun_path, sizeof a.sun_path, "%s/control", pipe_dir()) >= (int)sizeof a.sun_path) {
		errno = ENAMETOOLONG;
		return complain(pipe_dir());
	}
	if (argc > 2 || (*flag && strcmp(flag, "-d") && strcmp(flag, "-f"))) {
		fprintf(stderr, "nvidia-cuda-mps-control, simulated by Kerf: knows -d, -f and no flag at all\n");
		return 2;
	}
	return *flag ? daemon_main(&a, flag[1] == 'd') : client_main(&a);
}
