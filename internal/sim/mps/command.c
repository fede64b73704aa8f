/* command.c: the commands that the simulated control daemon knows. It answers as NVIDIA's does, and where it refuses it says that it is simulated. */
#define _GNU_SOURCE
#include "control.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 2048M, 2G or bytes. */
static bool bytes_of(const char *text, unsigned long long *out)
{
	char *end;
	*out = strtoull(text, &end, 10);
	if (*end == 'G' || *end == 'g')
		*out <<= 30, end++;
	else if (*end == 'M' || *end == 'm')
		*out <<= 20, end++;
	return end != text && !*end;
}

static const char bad[] = "simulated: not understood\n";

static void on_percent(struct limits *l, const char *value, char *out)
{
	unsigned n = (unsigned)strtoul(value, NULL, 10);
	if (n < 1 || n > 100)
		strcpy(out, "simulated: the percentage must be 1 to 100\n");
	else
		snprintf(out, LINE, "%u.0\n", l->percent = n);
}

static void on_memory(struct limits *l, const char *device, const char *value, char *out)
{
	unsigned long long n;
	if (strcmp(device, "0") != 0 || !bytes_of(value, &n))
		strcpy(out, "simulated: the device must be 0, and the limit as 2048M\n");
	else
		l->bytes = n, out[0] = 0;
}

static void list_clients(char *out)
{
	int at = 0;
	for (int i = 0; i < clients && at < LINE - 16; i++)
		if (client[i].served)
			at += snprintf(out + at, (size_t)(LINE - at), "%d\n", client[i].who.pid);
}

/* The answer to a command about the server that it names. */
static void on_server(int n, char w[][64], char *out)
{
	if (n < 2 || !server.pid || atoi(w[1]) != server.pid)
		strcpy(out, "simulated: there is no such server\n");
	else if (!strcmp(w[0], "get_client_list"))
		list_clients(out);
	else if (!strcmp(w[0], "get_active_thread_percentage"))
		snprintf(out, LINE, "%u.0\n", limits.percent);
	else if (!strcmp(w[0], "get_device_pinned_mem_limit"))
		snprintf(out, LINE, "%lluM\n", limits.bytes >> 20);
	else if (!strcmp(w[0], "set_active_thread_percentage") && n == 3)
		on_percent(&limits, w[2], out);
	else if (!strcmp(w[0], "set_device_pinned_mem_limit") && n == 4)
		on_memory(&limits, w[2], w[3], out);
	else if (!strcmp(w[0], "shutdown_server"))
		stop_server(), out[0] = 0;
	else
		strcpy(out, bad);
}

void command(char *line, char out[LINE])
{
	char w[4][64];
	int n = sscanf(line, "%63s %63s %63s %63s", w[0], w[1], w[2], w[3]);
	out[0] = 0;
	if (n < 1)
		return;
	if (!strcmp(w[0], "quit"))
		over = true;
	else if (!strcmp(w[0], "get_server_list") && server.pid)
		snprintf(out, LINE, "%d\n", server.pid);
	else if (!strcmp(w[0], "get_server_list"))
		;
	else if (!strcmp(w[0], "start_server") && n == 3 && !strcmp(w[1], "-uid"))
		start_server((uid_t)atoi(w[2]));
	else if (!strcmp(w[0], "get_default_active_thread_percentage"))
		snprintf(out, LINE, "%u.0\n", defaults.percent);
	else if (!strcmp(w[0], "set_default_active_thread_percentage") && n == 2)
		on_percent(&defaults, w[1], out);
	else if (!strcmp(w[0], "get_default_device_pinned_mem_limit"))
		snprintf(out, LINE, "%lluM\n", defaults.bytes >> 20);
	else if (!strcmp(w[0], "set_default_device_pinned_mem_limit") && n == 3)
		on_memory(&defaults, w[1], w[2], out);
	else
		on_server(n, w, out);
	note("%s", line);
}
