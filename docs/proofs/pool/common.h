/* What both proofs share: the pool's memory, mapped as dataplane/src/pool.rs maps it, and its checks. */
#ifndef POOL_PROOF_COMMON_H
#define POOL_PROOF_COMMON_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CHUNK 2048u		/* pool.rs: CHUNK */
#define HEADROOM 256u		/* pool.rs: HEADROOM */
#define HUGE_PAGE (2u << 20)
#define SUPER_FRAME 65549u	/* 14 bytes of Ethernet and the longest IPv4 packet */

enum pages { ORDINARY, HUGE };

static unsigned passed, failed;

/* One line for each fact: PASS or FAIL, what was checked, and the figures seen. */
__attribute__((format(printf, 2, 3)))
static inline void check(bool holds, const char *format, ...)
{
	va_list arguments;

	printf(holds ? "PASS " : "FAIL ");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	fflush(stdout);
	if (holds)
		passed++;
	else
		failed++;
}

/* What was seen and is not a condition. */
__attribute__((format(printf, 1, 2)))
static inline void note(const char *format, ...)
{
	va_list arguments;

	printf("NOTE ");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	fflush(stdout);
}

__attribute__((format(printf, 1, 2), noreturn))
static inline void die(const char *format, ...)
{
	int error = errno;
	va_list arguments;

	printf("FAIL ");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf(" (errno %d: %s)\n", error, strerror(error));
	exit(1);
}

static inline int summary(const char *name)
{
	printf("%s: %u passed, %u failed\n", name, passed, failed);
	return failed ? 1 : 0;
}

/* The pool's mapping: `bytes` (a multiple of 2 MiB), aligned to 2 MiB. */
static inline uint8_t *map_pool(size_t bytes, enum pages pages)
{
	int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
	uint8_t *start;

	if (pages == HUGE) {
		start = mmap(NULL, bytes, protection, flags | MAP_HUGETLB | MAP_POPULATE, -1, 0);
		if (start == MAP_FAILED)
			die("map %zu bytes of huge pages", bytes);
		return start;
	}
	start = mmap(NULL, bytes + HUGE_PAGE, protection, flags, -1, 0);
	if (start == MAP_FAILED)
		die("map %zu bytes", bytes);
	start = (uint8_t *)(((uintptr_t)start + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
	madvise(start, bytes, MADV_HUGEPAGE);
	return start;
}

/* Byte `at` of the frame number `frame`: no two frames, and no two offsets nearby, look alike. */
static inline uint8_t pattern(uint32_t frame, uint32_t at)
{
	return (uint8_t)((frame * 2654435761u + at * 40503u) >> 13);
}

static inline void fill(uint8_t *bytes, uint32_t frame, uint32_t from, uint32_t length)
{
	for (uint32_t i = 0; i < length; i++)
		bytes[i] = pattern(frame, from + i);
}

static inline bool intact(const uint8_t *bytes, uint32_t frame, uint32_t from, uint32_t length)
{
	for (uint32_t i = 0; i < length; i++)
		if (bytes[i] != pattern(frame, from + i))
			return false;
	return true;
}

#endif
