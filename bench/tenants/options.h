/* options.h: command lines for the tenants: one table per program, from which --help is printed too. */
#ifndef KERF_TENANT_OPTIONS_H
#define KERF_TENANT_OPTIONS_H

#include <stdint.h>

enum option_kind {
	OPTION_FLAG,   /* int: 1 if given */
	OPTION_COUNT,  /* uint64_t: a whole number */
	OPTION_BYTES,  /* uint64_t: a size such as 512Mi, 16Gi or a bare number of bytes */
	OPTION_NUMBER, /* double, not negative */
	OPTION_WORD,   /* const char * */
};

struct option_row {
	const char *name; /* without the dashes */
	enum option_kind kind;
	void *value;
	const char *help;
};

/* Reads argv by the table. --help prints `about` and the table and ends the process with 0; anything that is
 * not understood is named on stderr, with what would be, and ends it with 2. */
void options_read(int argc, char **argv, const char *about, const struct option_row *rows, int count);

/* 0 and *bytes, or -1 where text is not a size. */
int parse_bytes(const char *text, uint64_t *bytes);

/* A size for people, as "63.5 GiB". Holds for four calls. */
const char *human_bytes(uint64_t bytes);

#endif
