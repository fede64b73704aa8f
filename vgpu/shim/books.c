/* books.c: what this process holds, by address or handle. Private memory, so it is the truth that the shared
 * slot is compared with. A hash in shards, each a table with linear probing and its own lock; no entry is ever
 * moved between shards, so two threads meet only if their keys do. Memory comes from mmap: a tenant may have put
 * its own malloc in place, and some of those call CUDA.
 */
#define _GNU_SOURCE
#include "shim.h"

#include <sys/mman.h>

#define SHARDS     64
#define FIRST_SIZE 128u

struct shard {
	struct lock lock;
	uint32_t used, size; /* size is a power of two */
	struct book *at;
} __attribute__((aligned(64)));

static struct shard shards[SHARDS];

static uint64_t mix(enum book_kind kind, uint64_t key)
{
	uint64_t h = key ^ ((uint64_t)kind << 57);

	h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9ull;
	return h ^ (h >> 32);
}

static struct shard *shard_of(uint64_t h)
{
	return &shards[h >> 58];
}

static struct book *find(struct shard *s, uint64_t h, enum book_kind kind, uint64_t key)
{
	if (!s->size)
		return NULL;
	for (uint32_t i = (uint32_t)h & (s->size - 1);; i = (i + 1) & (s->size - 1)) {
		if (s->at[i].kind == BOOK_NONE)
			return NULL;
		if (s->at[i].kind == kind && s->at[i].key == key)
			return &s->at[i];
	}
}

static void insert(struct shard *s, uint64_t h, const struct book *b)
{
	uint32_t i = (uint32_t)h & (s->size - 1);

	while (s->at[i].kind != BOOK_NONE)
		i = (i + 1) & (s->size - 1);
	s->at[i] = *b;
	s->used++;
}

static bool grow(struct shard *s)
{
	uint32_t old_size = s->size;
	struct book *old = s->at, *at;

	s->size = old_size ? old_size * 2 : FIRST_SIZE;
	at = mmap(NULL, s->size * sizeof *at, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED) {
		s->size = old_size;
		return false;
	}
	s->at = at;
	s->used = 0;
	for (uint32_t i = 0; i < old_size; i++)
		if (old[i].kind != BOOK_NONE)
			insert(s, mix(old[i].kind, old[i].key), &old[i]);
	if (old)
		munmap(old, old_size * sizeof *old);
	return true;
}

bool book_put(const struct book *b)
{
	uint64_t h = mix(b->kind, b->key);
	struct shard *s = shard_of(h);
	struct book *have;
	bool ok = true;

	lock(&s->lock);
	have = find(s, h, b->kind, b->key);
	if (have)
		*have = *b;
	else if ((ok = s->used < s->size - s->size / 4 || grow(s)))
		insert(s, h, b);
	unlock(&s->lock);
	return ok;
}

/* Closes the hole, so that probing needs no tombstones: an entry moves back if its home is not after the hole. */
static void remove_at(struct shard *s, uint32_t hole)
{
	uint32_t mask = s->size - 1;

	for (uint32_t i = (hole + 1) & mask; s->at[i].kind != BOOK_NONE; i = (i + 1) & mask) {
		uint32_t home = (uint32_t)mix(s->at[i].kind, s->at[i].key) & mask;

		if (((i - home) & mask) >= ((i - hole) & mask)) {
			s->at[hole] = s->at[i];
			hole = i;
		}
	}
	s->at[hole].kind = BOOK_NONE;
	s->used--;
}

static bool look(enum book_kind kind, uint64_t key, struct book *out, bool take)
{
	uint64_t h = mix(kind, key);
	struct shard *s = shard_of(h);
	struct book *b;

	lock(&s->lock);
	b = find(s, h, kind, key);
	if (b) {
		*out = *b;
		if (take)
			remove_at(s, (uint32_t)(b - s->at));
	}
	unlock(&s->lock);
	return b != NULL;
}

void book_rename(uint64_t from, uint64_t to)
{
	for (struct shard *s = shards; s < shards + SHARDS; s++) {
		lock(&s->lock);
		for (uint32_t i = 0; i < s->size; i++)
			if (s->at[i].kind != BOOK_NONE && s->at[i].context == from)
				s->at[i].context = to;
		unlock(&s->lock);
	}
}

/* Takes one entry of the context at or after *from; the lock is free while the caller works on it. */
static bool take_one(struct shard *s, uint64_t context, uint32_t *from, struct book *out)
{
	bool found = false;

	lock(&s->lock);
	for (; *from < s->size && !found; *from += !found)
		if (s->at[*from].kind != BOOK_NONE && s->at[*from].context == context) {
			*out = s->at[*from];
			remove_at(s, *from); /* which may move another entry here: look again at the same place */
			found = true;
		}
	unlock(&s->lock);
	return found;
}

/* Other threads move entries meanwhile: a shard is done after a pass that found none. */
void book_sweep(uint64_t context, void (*gone)(const struct book *))
{
	for (size_t n = 0; n < SHARDS; n++) {
		bool again;

		do {
			uint32_t from = 0;
			struct book b;

			for (again = false; take_one(&shards[n], context, &from, &b); again = true)
				gone(&b);
		} while (again);
	}
}

bool book_take(enum book_kind kind, uint64_t key, struct book *out)
{
	return look(kind, key, out, true);
}

bool book_get(enum book_kind kind, uint64_t key, struct book *out)
{
	return look(kind, key, out, false);
}
