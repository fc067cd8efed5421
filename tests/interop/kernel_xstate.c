/*
 * Lets User-Mode Linux run on processors whose register state is larger than the one it knows.
 *
 * UML 6.1 keeps 2696 bytes of extended state (AVX-512 and PKRU) of each process and writes them back with
 * PTRACE_SETREGSET. A host kernel takes only the whole state (EFAULT otherwise), and AMX makes that 11,008 bytes. With
 * LD_PRELOAD this stands before ptrace(2) and completes what is written with what the process has: tiles, which
 * nothing inside uses.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

typedef long (*ptrace_function)(int, pid_t, void *, void *);

long ptrace(enum __ptrace_request request, ...)
{
    static ptrace_function next;
    static char whole[1 << 16];
    va_list arguments;

    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);
    if (!next)
        next = (ptrace_function)dlsym(RTLD_NEXT, "ptrace");

    if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
        struct iovec *part = data;
        struct iovec all = {whole, sizeof(whole)};
        if (!next(PTRACE_GETREGSET, pid, address, &all) && all.iov_len > part->iov_len) {
            memcpy(whole, part->iov_base, part->iov_len);
            return next(PTRACE_SETREGSET, pid, address, &all);
        }
    }
    return next(request, pid, address, data);
}
