/* object.c: handles' objects, recycled among their kind and never given back to malloc (see sim.h). */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

static struct object *spare[K_END - K_CONTEXT + 1];

void *object_new(enum kind kind, size_t size)
{
	struct object *o = spare[kind - K_CONTEXT];
	if (o) {
		spare[kind - K_CONTEXT] = o->next;
		memset(o, 0, size);
	} else if (!(o = calloc(1, size))) {
		return NULL;
	}
	o->kind = kind;
	return o;
}

void object_free(void *obj)
{
	struct object *o = obj;
	unsigned i = o->kind - K_CONTEXT;
	o->kind = K_FREE;
	o->next = spare[i];
	spare[i] = o;
}
