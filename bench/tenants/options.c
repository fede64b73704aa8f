#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const KIND_NAME[] = {"", " N", " BYTES", " NUMBER", " WORD"};

static void print_help(const char *program, const char *about, const struct option_row *rows, int count)
{
	printf("%s: %s\n\n", program, about);
	for (int i = 0; i < count; i++) {
		char left[64];
		snprintf(left, sizeof left, "--%s%s", rows[i].name, KIND_NAME[rows[i].kind]);
		printf("  %-22s %s\n", left, rows[i].help);
	}
	printf("  %-22s %s\n", "--help", "print this");
	printf("\nSizes: a number of bytes, or with Ki, Mi, Gi, Ti.\n"
	       "Exit: 0 all went well, 1 a CUDA call failed or data was wrong, 2 bad arguments.\n");
}

int parse_bytes(const char *text, uint64_t *bytes)
{
	static const struct { const char *suffix; int shift; } UNIT[] = {
		{"", 0}, {"Ki", 10}, {"Mi", 20}, {"Gi", 30}, {"Ti", 40},
	};
	char *end;
	if (*text < '0' || *text > '9')
		return -1; /* strtoull would take "-1" */
	errno = 0;
	unsigned long long number = strtoull(text, &end, 10);
	for (size_t i = 0; i < sizeof UNIT / sizeof UNIT[0]; i++) {
		if (strcmp(end, UNIT[i].suffix) != 0)
			continue;
		if (errno != 0 || number > (UINT64_MAX >> UNIT[i].shift))
			return -1;
		*bytes = (uint64_t)number << UNIT[i].shift;
		return 0;
	}
	return -1;
}

const char *human_bytes(uint64_t bytes)
{
	static char text[4][24];
	static int turn;
	char *out = text[turn++ % 4];
	if (bytes >= 1ull << 30)
		snprintf(out, sizeof text[0], "%.2f GiB", (double)bytes / (1 << 30));
	else if (bytes >= 1ull << 20)
		snprintf(out, sizeof text[0], "%.1f MiB", (double)bytes / (1 << 20));
	else
		snprintf(out, sizeof text[0], "%llu B", (unsigned long long)bytes);
	return out;
}

/* Returns what the value should have been, or NULL where it was that. */
static const char *read_value(const struct option_row *row, const char *text)
{
	char *end;
	switch (row->kind) {
	case OPTION_COUNT:
		if (*text < '0' || *text > '9')
			return "a whole number";
		errno = 0;
		*(uint64_t *)row->value = strtoull(text, &end, 10);
		return *end || errno ? "a whole number" : NULL;
	case OPTION_BYTES:
		return parse_bytes(text, row->value) ? "a size such as 512Mi or 16Gi" : NULL;
	case OPTION_NUMBER:
		*(double *)row->value = strtod(text, &end);
		return end == text || *end || !(*(double *)row->value >= 0) ? "a number that is not negative" : NULL;
	case OPTION_WORD:
		*(const char **)row->value = text;
		return NULL;
	case OPTION_FLAG:
		break;
	}
	return NULL;
}

static const struct option_row *find_row(const char *name, const struct option_row *rows, int count)
{
	for (int i = 0; i < count; i++)
		if (strcmp(name, rows[i].name) == 0)
			return &rows[i];
	return NULL;
}

void options_read(int argc, char **argv, const char *about, const struct option_row *rows, int count)
{
	const char *program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	for (int i = 1; i < argc; i++) {
		const char *arg = argv[i];
		if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
			print_help(program, about, rows, count);
			exit(0);
		}
		const struct option_row *row = strncmp(arg, "--", 2) == 0 ? find_row(arg + 2, rows, count) : NULL;
		if (!row) {
			fprintf(stderr, "%s: unknown argument '%s': see %s --help\n", program, arg, program);
			exit(2);
		}
		if (row->kind == OPTION_FLAG) {
			*(int *)row->value = 1;
			continue;
		}
		const char *wanted = i + 1 < argc ? read_value(row, argv[i + 1]) : "a value";
		if (wanted) {
			fprintf(stderr, "%s: %s %s: give %s\n", program, arg, i + 1 < argc ? argv[i + 1] : "(nothing)", wanted);
			exit(2);
		}
		i++;
	}
}
