/*
 * Cold migrations that take their disks along, as docs/SWITCHOVER.md describes them ("Disks that move along") and
 * src/host/storage_source.c and storage_destination.c do them.
 *
 * A VM that does not run (its guest is in a file) moves from host 0, where its disk and lock are, to host 1, which gets copies of the
 * disk and a lock of its own. Meanwhile, and afterwards, others try to resume it from the file, and to start it anew from its disk, by
 * either copy. Each of the two ferryd may die at any step, and be started anew; words between them may be lost. What host 0's own
 * inventory forbids (Not Runnable) keeps nobody out here: the locks alone must do, for a third host has no part in it.
 *
 * With SHARED nothing but the file is copied: disk and lock are those of host 0 for both hosts, and the lock keeps what it says.
 *
 * What is checked:
 *   never two running         RUNNING never exceeds one, whichever disk
 *   never two runnable        while host 1 has the VM, the lock of host 0 refuses everybody
 *   never none                in the end one of the two hosts has a VM that can be started
 *   never two owners          host 1 lists the VM only while it is Not Runnable at host 0, and in the end one of them has it
 *   no memory older than disk a guest that goes on from the file knows every write to the disk that it gets
 *   no torn copy              nobody writes to the disk while it is copied
 *
 * Mutants, each of which must be caught: MUTANT_UNLOCKED_COPY (the lock is not held while the disk is copied), MUTANT_NO_HANDOVER (the
 * lock goes on saying `held`), MUTANT_LIST_EARLY (host 1 has the VM as soon as all is copied), MUTANT_TAKE_BACK_UNASKED (without an
 * answer host 0 takes the VM back; with SHARED, too), MUTANT_NEW_LOCK (the lock of host 1 begins with a generation of its own),
 * MUTANT_BAN_LATE (the VM becomes Not Runnable at host 0 when the answer has come).
 */

#ifdef SHARED
#define AT(where) 0 /* the disk and lock that host WHERE reaches */
#else
#define AT(where) where
#endif

#define HELD     1
#define HANDOVER 2

#define COPYING 0
#define COPIED  1
#define TAKEN   2
#define FAILED  3
#define DONE    4

#define WRITES_MAX 3

byte state[2] = HELD;
byte generation[2] = 1;
bool locked[2] = false;
byte disk[2] = 0; /* version: acknowledged writes */
byte running = 0;

byte file_generation = 1; /* the guest in it knows version 0 of the disk */

byte stage = COPYING;    /* what the destination's record says */
bool listed = false;     /* it has the VM, also for its next ferryd */
bool banned = false;     /* what host 0's inventory says */
bool take_sent = false;
byte carried = 0;        /* generation that came with it */
bool source_over = false;

inline begins_to_run()
{
    running++;
    assert(running <= 1)
}

/* It executes: that may write to its disk. */
inline executes(where, memory)
{
    do
    :: disk[where] < WRITES_MAX -> atomic { disk[where] = disk[where] + 1; memory = disk[where] }
    :: break
    od
}

active proctype source()
{
    byte before;

#ifndef MUTANT_UNLOCKED_COPY
    if
    :: atomic { !locked[0] -> locked[0] = true }
    :: goto stays
    fi;
#endif
    before = disk[0];
    if
    :: goto lets_go /* dies, or the copy fails */
    :: skip
    fi;
#ifndef SHARED
    disk[1] = disk[0];
#endif
#ifdef MUTANT_UNLOCKED_COPY
    if
    :: atomic { !locked[0] -> locked[0] = true }
    :: goto stays
    fi;
#endif
    assert(before == disk[0]);
    if
    :: atomic { stage == COPYING -> stage = COPIED }
    :: stage == FAILED -> goto lets_go
    fi;
#ifdef MUTANT_LIST_EARLY
    generation[1] = generation[0];
    listed = true;
#endif
    if
    :: goto lets_go
    :: skip
    fi;
#ifndef MUTANT_BAN_LATE
    banned = true;
#endif
#if !defined(MUTANT_NO_HANDOVER) && !defined(SHARED)
    state[0] = HANDOVER;
#endif
    if
    :: goto in_doubt /* dies: the next ferryd finds that it may have given the VM away */
    :: skip
    fi;
    atomic { carried = generation[0]; take_sent = true };
    if
    :: stage == DONE -> atomic { banned = true; locked[0] = false }; goto ends
    :: stage == FAILED -> state[0] = HELD; atomic { banned = false; locked[0] = false }; goto ends
    :: goto in_doubt /* no answer, or dies */
    fi;
in_doubt:
    locked[0] = false;
#ifdef MUTANT_TAKE_BACK_UNASKED
    state[0] = HELD;
    banned = false;
    goto ends;
#endif
    /* Both ask each other until they know: the destination's record decides. */
    if
    :: stage == DONE -> banned = true
    :: stage == FAILED -> atomic { !locked[0] -> locked[0] = true }; state[0] = HELD; atomic { banned = false; locked[0] = false }
    fi;
    goto ends;
lets_go:
    locked[0] = false;
stays:
    skip;
ends:
    source_over = true
}

active proctype destination()
{
    /* What it gets is worth nothing until it was told to take it, and then only if it has all. */
    if
    :: stage == COPIED && take_sent -> stage = TAKEN
    :: stage = FAILED; goto ends /* gives up, or dies: the next ferryd removes what there is */
    fi;
    if
    :: stage = FAILED; goto ends /* files cannot get their names, or it dies while they do */
    :: skip
    fi;
#ifdef SHARED
    atomic { listed = true; stage = DONE; assert(banned) };
#else
#ifndef MUTANT_NEW_LOCK
    generation[1] = carried;
#endif
    atomic { listed = true; stage = DONE; assert(banned && state[0] == HANDOVER) };
#endif
ends:
    skip
}

/* From the file, with the disk of WHERE. */
proctype resumes(byte where)
{
    byte memory = 0;
    byte before;

end_not_there:
    where == 0 || listed;
    if
    :: atomic { !locked[AT(where)] -> locked[AT(where)] = true }
    :: goto ends
    fi;
    if
    :: state[AT(where)] == HANDOVER || generation[AT(where)] != file_generation -> goto lets_go
    :: else
    fi;
    before = generation[AT(where)];
    generation[AT(where)] = before + 1;
    if
    :: generation[AT(where)] = before; goto lets_go /* fails before the first instruction */
    :: skip
    fi;
    atomic { begins_to_run(); assert(memory == disk[AT(where)]) };
    executes(AT(where), memory);
    running--;
lets_go:
    locked[AT(where)] = false;
ends:
    skip
}

/* From the disk of WHERE. */
proctype starts_anew(byte where)
{
    byte memory;

end_not_there:
    where == 0 || listed;
    if
    :: atomic { !locked[AT(where)] -> locked[AT(where)] = true }
    :: goto ends
    fi;
    if
    :: state[AT(where)] == HANDOVER -> goto lets_go
    :: else
    fi;
    generation[AT(where)] = generation[AT(where)] + 1;
    atomic { begins_to_run(); memory = disk[AT(where)] };
    executes(AT(where), memory);
    running--;
lets_go:
    locked[AT(where)] = false;
ends:
    skip
}

/* In the end. */
active proctype watches()
{
end_waits:
    source_over && (stage == FAILED || stage == DONE);
    assert(listed == banned);
#ifndef SHARED
    assert(listed || state[0] == HELD);
    assert(!(listed && state[0] == HELD))
#endif
}

init
{
    atomic { run resumes(0); run resumes(1); run starts_anew(0); run starts_anew(1) }
}
