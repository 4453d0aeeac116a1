/*
 * Suspend and resume, as docs/SWITCHOVER.md describes them ("Suspended VMs") and src/vm/ownership.c and src/host/resume.c
 * do them.
 *
 * A VM process that is suspended into a file, two hosts that try to resume it from that file (once each, at any time), and an
 * administrator who starts the VM anew from its disks on a third one (at any time, too). All see the same lock. Every process may
 * die at any step; the kernel drops its lock then, the lock's content stays.
 *
 * The file says of which generation the lock was when the guest was saved. Every owner makes it grow, so a lock that says the same
 * when it is held tells that nobody has had the VM since, and that its disk is as the guest in the file knows it. Who resumed it and
 * failed before the first instruction puts the generation back.
 *
 * What is checked:
 *   never two running         RUNNING_COUNT never exceeds one
 *   no memory older than disk a guest that goes on from the file knows every write to its disk
 *
 * Mutants, each of which must be caught: MUTANT_LOOK_FIRST (the generation is compared before the lock is taken only),
 * MUTANT_RUN_ON (when the file is complete something fails, and the guest runs on), MUTANT_PUT_BACK_LATE (the generation is put back
 * although the guest has run).
 */

byte generation = 1;
bool locked = true; /* by the process that is to be suspended */
byte disk = 0;      /* version: acknowledged writes */
bool file_complete = false;
byte file_generation = 0;
byte file_memory = 0; /* the version that the guest in it knows */
byte running = 0;     /* guests that run */

#define WRITES_MAX 4

inline begins_to_run()
{
    running++;
    assert(running <= 1)
}

/* It executes: that may write to its disk. */
inline executes(memory)
{
    do
    :: disk < WRITES_MAX -> atomic { disk++; memory = disk }
    :: break
    od
}

active proctype suspended()
{
    byte memory = 0;

    running = 1;
    executes(memory);
    if
    :: goto ends /* dies, or is never suspended */
    :: skip
    fi;
    atomic { running = 0; file_memory = memory; file_generation = generation } /* paused and quiesced; written */
    if
    :: goto ends                                                               /* dies: there is no file */
    :: running = 1; executes(memory); goto ends                                /* fails: it runs on, and there is no file */
    :: file_complete = true
    fi;
#ifdef MUTANT_RUN_ON
    if
    :: atomic { begins_to_run() }; executes(memory)
    :: skip
    fi;
#endif
ends:
    atomic { running = 0; locked = false }
}

proctype resumes()
{
    byte memory;
    byte before;
    bool owns = false;

end_without_file:
    file_complete;
    memory = file_memory;
    /* ferryd looks first, for a good sentence; that decides nothing. */
    if
    :: generation != file_generation -> goto ends
    :: else
    fi;
    if
    :: atomic { !locked -> locked = true; owns = true }
    :: goto ends
    fi;
#ifndef MUTANT_LOOK_FIRST
    if
    :: generation != file_generation -> goto ends
    :: else
    fi;
#endif
    before = generation;
    generation = generation + 1;
    if
    :: goto ends /* dies before the first instruction: the file is stale from now on, though nothing ran */
    :: generation = before; goto ends /* fails before it: as before */
    :: skip
    fi;
    atomic { begins_to_run(); assert(memory == disk) }
    executes(memory);
#ifdef MUTANT_PUT_BACK_LATE
    generation = before;
#endif
    running = 0;
ends:
    if
    :: owns -> locked = false
    :: else
    fi
}

proctype starts_anew()
{
    byte memory;
    bool owns = false;

    if
    :: atomic { !locked -> locked = true; owns = true }
    :: goto ends
    fi;
    generation = generation + 1;
    if
    :: goto ends
    :: skip
    fi;
    atomic { begins_to_run(); memory = disk };
    executes(memory);
    running = 0;
ends:
    if
    :: owns -> locked = false
    :: else
    fi
}

init
{
    atomic { run resumes(); run resumes(); run starts_anew() }
}
