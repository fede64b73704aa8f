/* control.h: what control.c (the daemon, its server and clients) and command.c (what it is told) know of each other. */
#ifndef KERF_SIM_MPS_CONTROL_H
#define KERF_SIM_MPS_CONTROL_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/types.h>

#define LINE 4096 /* room for a command, or its answer */

struct limits { unsigned percent; unsigned long long bytes; };
struct client { int fd; struct ucred who; bool asks, served; };

extern struct limits defaults, limits; /* of servers to come; of the one that there is */
extern struct server { pid_t pid; uid_t uid; int lifeline; } server;
extern struct client client[];
extern int clients;
extern bool over;

bool start_server(uid_t uid);
void stop_server(void);
void note(const char *form, ...) __attribute__((format(printf, 1, 2)));
void command(char *line, char out[LINE]);

#endif
