/*
 * The switchover, as docs/SWITCHOVER.md describes it and src/vm/ownership.c and src/engine/switchover.c do it.
 *
 * Two VM processes (source, destination), an ownership lock on storage that both reach (or do not: STORAGE_CUT), a control
 * connection and a page connection between them that delay and, once, break, crashes of either process at any step, and
 * an administrator who, when nothing runs, tries to start the VM anew from its disks on a third host.
 *
 * Agents (ferryd) are not in the model because no step of the switchover waits for one: that is the design, and the
 * code's tests kill them to show it.
 *
 * With passed memory (PASSED: both processes on one host) nothing is copied: the two have one memory. Whoever is not the owner
 * must not have written to it: a source that takes the guest back finds what its vCPUs and devices left.
 *
 * With quick resume (QUICK) pages are missing at the destination when it starts: the source's process is needed after
 * RUNNING, until all are there. A lost connection stops the guest there, and is made again by the source. If the source dies
 * meanwhile, the VM is lost as in any host failure: the destination gives it up, and it is started anew from its disks.
 *
 * What is checked:
 *   never two running            RUNNING_COUNT never exceeds one
 *   no acknowledged write lost   a copy that runs has in its memory every write that was acknowledged to disk or client
 *   one ends up running          when everything has come to rest and a host lives that reaches the lock, one runs
 *   nothing discarded too early  a source gives up no memory that a living destination still needs
 *
 * Mutants, each of which must be caught: MUTANT_GO_EARLY (GO before the lock is released, and the destination trusts it),
 * MUTANT_NO_REACQUIRE (the source resumes without taking the lock back), MUTANT_IGNORE_STARTED (the source resumes
 * although the lock says `started`), MUTANT_LOAD_WRITES (with passed memory, the destination writes to it before it has written
 * `started`), and of quick resume MUTANT_RESUME_SERVING (the source resumes when the connection is lost after RUNNING),
 * MUTANT_DISCARD_AT_RUNNING (the source ends at RUNNING), MUTANT_DISCARD_AT_STARTED (the source ends when the lock says that it
 * runs elsewhere).
 */

mtype = { HELD, HANDOVER, ACQUIRED, STARTED };        /* lock content: state */
mtype = { NOBODY, SOURCE, DESTINATION, THIRD };       /* who */
mtype = { CHECKPOINT, LAST_PAGES, RESTORE_OK, RESTORE_FAILURE, GO, RUNNING }; /* messages */

/* The source's states carry the names of the transition states. */
mtype = { TO_PRECOPY, TO_CHECKPT, TO_WAIT_HANDSHAKE, TO_RETAKE, TO_SERVING, TO_FINISHED };
mtype = { FROM_PRECOPY, FROM_CHECKPT, FROM_WAIT_GO, FROM_ACQUIRE, FROM_FETCHING, FROM_FINISHED };

/* The lock file. The kernel drops the lock when its holder dies; the content stays. */
mtype lock_holder = SOURCE;
mtype lock_state = HELD;
mtype lock_owner = SOURCE; /* named by the content: for HANDOVER whom it is meant for */
byte generation = 1;

/* What exists where. "version" counts acknowledged guest writes. */
byte acknowledged = 0; /* on disk and at clients */
#ifdef PASSED
byte memory = 0;
#define source_memory      memory
#define destination_memory memory
#else
byte source_memory = 0;
byte destination_memory = 0;
#endif
/* What vCPUs and devices here belong to. */
byte source_state_of = 0;
byte destination_state_of = 0;
bool source_runs = true;
bool destination_runs = false;
bool third_runs = false;
byte missing = 0; /* pages that only the source has while the guest runs at the destination */
bool source_alive = true;
bool destination_alive = true;

mtype source_state = TO_PRECOPY;
mtype destination_state = FROM_PRECOPY;

/* One connection a direction is enough for control; pages have their own: no order between the two. */
chan control_to = [2] of { mtype, byte };
chan control_from = [2] of { mtype };
chan pages_to = [1] of { byte };
bool connection_up = true;
byte connections_left = 1; /* that a serving source makes again; bounds the model, not the protocol */

/* Storage reachable from each host; only STORAGE_CUT lets it go away. */
bool source_storage = true;
bool destination_storage = true;

#define RUNNING_COUNT ((source_runs -> 1 : 0) + (destination_runs -> 1 : 0) + (third_runs -> 1 : 0))
#define WRITES_MAX    3
#ifdef QUICK
#define PAGES_MISSING 2
#else
#define PAGES_MISSING 0
#endif

inline check_one_running()
{
    assert(RUNNING_COUNT <= 1);
}

/* A copy that starts to execute must hold every acknowledged write, and nothing that its vCPUs and devices know nothing of. */
inline source_resumes()
{
    source_runs = true;
    check_one_running();
    assert(source_memory >= acknowledged && source_state_of == source_memory)
}

inline destination_resumes()
{
    destination_runs = true;
    check_one_running();
    assert(destination_memory >= acknowledged && destination_state_of == destination_memory)
}

/* A source's process that ends takes its memory along. */
inline source_discards()
{
    assert(missing == 0 || !destination_alive || !destination_runs)
}

/* ---- the guest: wherever it runs, it writes and is acknowledged. With pages missing it stands still while the source cannot
 * be reached ---- */
active proctype guest()
{
end_guest:
    do
    :: atomic { source_runs && source_alive && acknowledged < WRITES_MAX ->
           acknowledged++; source_memory = acknowledged; source_state_of = acknowledged }
    :: atomic { destination_runs && destination_alive && (missing == 0 || connection_up) && acknowledged < WRITES_MAX ->
           acknowledged++; destination_memory = acknowledged;
           destination_state_of = acknowledged }
    od
}

/* ---- the source VM process ---- */
active proctype source()
{
    byte checkpoint_version;

    /* Pre-copy: anything may fail here; the guest runs and the lock is ours. */
    source_state = TO_CHECKPT;
    if
    :: atomic { source_alive -> /* pause, quiesce: nothing is acknowledged any more */
           source_runs = false; checkpoint_version = source_memory; missing = PAGES_MISSING }
    :: !source_alive -> goto dead
    fi;

    if
    :: atomic { source_alive && connection_up -> pages_to!checkpoint_version; control_to!CHECKPOINT(checkpoint_version) }
    :: atomic { source_alive && !connection_up -> goto fail_back }
    :: !source_alive -> goto dead
    fi;

    source_state = TO_WAIT_HANDSHAKE;
    if
    :: atomic { source_alive && control_from?[RESTORE_OK] -> control_from?RESTORE_OK }
    :: atomic { source_alive && control_from?[RESTORE_FAILURE] -> control_from?RESTORE_FAILURE; goto fail_back }
    :: atomic { source_alive && !connection_up && empty(control_from) -> goto fail_back } /* lost, or timed out */
    :: !source_alive -> goto dead
    fi;

#ifdef MUTANT_GO_EARLY
    if
    :: source_alive && connection_up -> control_to!GO(0)
    :: source_alive && !connection_up -> goto fail_back
    :: !source_alive -> goto dead
    fi;
#endif

    /* Restore-OK: write handover, release, then GO. A storage that cannot be written means: not released. */
    if
    :: atomic { source_alive && source_storage && lock_holder == SOURCE ->
           lock_state = HANDOVER; lock_owner = DESTINATION }
    :: source_alive && !source_storage -> goto fail_back
    :: !source_alive -> goto dead
    fi;
    if
    :: atomic { source_alive -> lock_holder = NOBODY }
    :: !source_alive -> goto dead
    fi;

#ifndef MUTANT_GO_EARLY
    if
    :: atomic { source_alive && connection_up -> control_to!GO(0) }
    :: atomic { source_alive && !connection_up -> goto retake } /* GO may or may not have left: the same from here */
    :: !source_alive -> goto dead
    fi;
#endif

    if
    :: atomic { source_alive && control_from?[RUNNING] -> control_from?RUNNING;
           if
#ifndef MUTANT_DISCARD_AT_RUNNING
           :: missing > 0 -> goto serving
#endif
           :: else -> source_discards(); goto finished
           fi }
    :: atomic { source_alive && !connection_up && empty(control_from) -> goto retake }
    :: !source_alive -> goto dead
    fi;

retake:
    source_state = TO_RETAKE;
#ifdef MUTANT_NO_REACQUIRE
    if
    :: atomic { source_alive -> source_resumes(); goto finished }
    :: !source_alive -> goto dead
    fi;
#endif
    /* Take the lock back, then read what it says. Not to be had: somebody owns the VM; stay stopped, and look again. */
end_retake:
    if
    :: atomic { source_alive && source_storage && lock_holder == NOBODY ->
           lock_holder = SOURCE;
           if
#ifdef MUTANT_IGNORE_STARTED
           :: true ->
#else
           :: lock_state == HANDOVER || lock_state == ACQUIRED ->
#endif
               lock_state = STARTED; lock_owner = SOURCE; generation = generation + 2;
               source_resumes()
           :: else -> lock_holder = NOBODY /* started elsewhere: the stale copy here never runs */
           fi;
           goto finished
       }
    :: atomic { source_alive && source_storage && lock_holder != NOBODY && lock_holder != SOURCE &&
                lock_state != HANDOVER && lock_state != ACQUIRED ->
           if
#ifndef MUTANT_DISCARD_AT_STARTED
           :: missing > 0 && lock_holder == DESTINATION -> goto serving
#endif
           :: else -> source_discards(); source_alive = false /* the other side owns it, and it says so: this process ends */
           fi;
           goto finished }
    :: !source_alive -> goto dead
    fi;

serving:
    /* Quick resume: the guest runs there and needs what is here. The copy here is behind: it is never resumed, unless the lock
     * says that the destination has not executed one instruction. */
    source_state = TO_SERVING;
end_serving:
    if
    :: atomic { source_alive && missing == 0 -> source_discards(); goto finished } /* all is there, and it said so */
    :: atomic { source_alive && !connection_up && destination_alive && missing > 0 && connections_left > 0 &&
                destination_state == FROM_FETCHING ->
           connections_left--; connection_up = true; goto end_serving }
    :: atomic { source_alive && !connection_up && source_storage && lock_holder != DESTINATION && lock_state == STARTED ->
           source_discards(); goto finished } /* the destination has died: a host failure */
    :: atomic { source_alive && !connection_up && source_storage && lock_holder == NOBODY &&
                (lock_state == HANDOVER || lock_state == ACQUIRED) ->
           goto retake } /* it could not resume it: nothing ran */
#ifdef MUTANT_RESUME_SERVING
    :: atomic { source_alive && !connection_up -> source_resumes(); goto finished }
#endif
    :: !source_alive -> goto dead
    fi;

fail_back:
    /* GO was not sent, the lock was never let go: the guest goes on here as if nothing had been asked. */
    if
    :: atomic { source_alive ->
           connection_up = false; /* closed, or ABORT said: the destination discards */
           assert(lock_holder == SOURCE);
           if
           :: source_storage -> lock_state = HELD; lock_owner = SOURCE
           :: else
           fi;
           source_resumes() }
    :: !source_alive
    fi;

finished:
    source_state = TO_FINISHED;
dead:
    skip
}

/* ---- the destination VM process ---- */
active proctype destination()
{
    byte version;
    byte go;
    bool have_pages = false;
    bool have_checkpoint = false;

    destination_state = FROM_CHECKPT;
    /* Restore-OK only when the pages and the checkpoint are both here, in whichever order they came. */
    do
    :: atomic { destination_alive && !have_pages && nempty(pages_to) -> pages_to?version; have_pages = true;
#ifndef PASSED
           destination_memory = version
#endif
       }
    :: atomic { destination_alive && !have_checkpoint && control_to?[CHECKPOINT,_] -> control_to?CHECKPOINT,version; have_checkpoint = true;
           destination_state_of = version;
#ifdef MUTANT_LOAD_WRITES
           destination_memory++; destination_state_of = destination_memory /* a device does what it finds in its queue */
#endif
       }
    :: have_pages && have_checkpoint -> break
    :: destination_alive && !connection_up && empty(pages_to) && empty(control_to) -> goto discard
    :: !destination_alive -> goto dead
    od;

    if
    :: atomic { destination_alive && connection_up -> control_from!RESTORE_OK }
    :: atomic { destination_alive && connection_up -> control_from!RESTORE_FAILURE; goto discard }
    :: destination_alive && !connection_up -> goto discard
    :: !destination_alive -> goto dead
    fi;

    destination_state = FROM_WAIT_GO;
    if
    :: atomic { destination_alive && control_to?[GO,_] -> control_to?GO,go }
    :: atomic { destination_alive && !connection_up && empty(control_to) -> goto discard } /* no GO: nothing to run */
    :: !destination_alive -> goto dead
    fi;

    destination_state = FROM_ACQUIRE;
#ifdef MUTANT_GO_EARLY
    /* trusts GO alone */
    if
    :: atomic { destination_alive ->
           destination_resumes(); goto finished }
    :: !destination_alive -> goto dead
    fi;
#endif
    /* Take the lock and see that the handover names us: a source that took it back wrote something else. */
    if
    :: atomic { destination_alive && destination_storage && lock_holder == NOBODY ->
           if
           :: lock_state == HANDOVER && lock_owner == DESTINATION ->
               lock_holder = DESTINATION; lock_state = ACQUIRED; generation++
           :: else -> goto discard
           fi }
    :: destination_alive && (!destination_storage || lock_holder != NOBODY) -> goto discard
    :: !destination_alive -> goto dead
    fi;

    /* `started` is on storage before the first instruction. */
    if
    :: atomic { destination_alive && destination_storage -> lock_state = STARTED }
    :: atomic { destination_alive && !destination_storage -> lock_holder = NOBODY; goto discard }
    :: !destination_alive -> goto dead
    fi;
    if
    :: atomic { destination_alive ->
           destination_resumes() }
    :: atomic { destination_alive && destination_storage ->
           lock_state = ACQUIRED; goto give_back } /* it cannot be resumed here: nothing ran, and the lock says so */
    :: atomic { destination_alive && !destination_storage -> lock_holder = NOBODY; goto discard } /* the same, with no storage to say so */
    :: !destination_alive -> goto dead
    fi;
    if
    :: atomic { destination_alive && connection_up -> control_from!RUNNING }
    :: destination_alive && !connection_up
    :: !destination_alive -> goto dead
    fi;
    destination_state = FROM_FETCHING;
end_fetching:
    do
    :: atomic { destination_alive && missing > 0 && connection_up && source_alive -> missing-- }
    :: atomic { destination_alive && missing > 0 && !source_alive ->
           /* What is missing is gone: a host failure. The guest is given up, and can be started anew from its disks. */
           destination_runs = false; lock_holder = NOBODY; goto discard }
    :: atomic { destination_alive && missing == 0 -> break }
    :: !destination_alive -> goto dead
    od;
finished:
    destination_state = FROM_FINISHED;
    goto done;
give_back:
    if
    :: atomic { destination_alive -> lock_holder = NOBODY; goto discard }
    :: !destination_alive -> goto dead
    fi;
discard:
    destination_state = FROM_FINISHED;
    atomic { destination_alive = false; /* powers down and cleans up: its end of the connection closes with it */
             connection_up = false };
dead:
    skip;
done:
    skip
}

/* ---- what goes wrong: each at most once, at any moment ---- */
active proctype misfortune()
{
end_misfortune:
    do
    :: atomic { connection_up ->
           connection_up = false;
           /* What was on the way arrives or is lost. */
           if
           :: true -> do :: control_to?_,_ :: empty(control_to) -> break od
           :: true
           fi;
           if
           :: true -> do :: control_from?_ :: empty(control_from) -> break od
           :: true
           fi;
           if
           :: true -> do :: pages_to?_ :: empty(pages_to) -> break od
           :: true
           fi }
    :: atomic { source_alive ->
           source_alive = false; source_runs = false; connection_up = false;
           if :: lock_holder == SOURCE -> lock_holder = NOBODY :: else fi }
    :: atomic { destination_alive ->
           destination_alive = false; destination_runs = false; connection_up = false;
           if :: lock_holder == DESTINATION -> lock_holder = NOBODY :: else fi }
#ifdef STORAGE_CUT
    :: atomic { source_storage -> source_storage = false }
    :: atomic { destination_storage -> destination_storage = false }
#endif
    :: break
    od
}

/*
 * ---- an administrator (or a third host) starts the VM anew from its disks ----
 * Refused while the lock is held, and while it says `handover` or `acquired` and one of the two hosts' processes, which alone
 * may settle that, lives. A fresh boot has no stale memory: it reads the disks, where every acknowledged write is.
 */
active proctype third()
{
end_third:
    if
    :: atomic { lock_holder == NOBODY && !third_runs &&
                (lock_state == STARTED || lock_state == HELD || (!source_alive && !destination_alive)) ->
           lock_holder = THIRD; lock_state = STARTED; lock_owner = THIRD; generation = generation + 2;
           third_runs = true; check_one_running() }
    fi
}

/* ---- at rest: nothing else can happen ---- */
active proctype judge()
{
    do
    :: timeout -> break
    od;
#ifndef STORAGE_CUT
    assert(RUNNING_COUNT == 1);
#else
    assert(RUNNING_COUNT <= 1);
#endif
    /* What is not there yet is still to be had. */
    assert(!(destination_runs && missing > 0) || source_alive)
}
