/* names.h: the names that the table of entry points knows, sorted. */
#ifndef KERF_NAMES_H
#define KERF_NAMES_H

#include <stddef.h>

extern const char *const kerf_names[];
extern const size_t kerf_names_len;

#endif
