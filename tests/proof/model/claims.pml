/*
 * The claim protocol for one task id of one run, with two attempts. See docs/model.md for which
 * function each step is, and for what is left out.
 *
 * WORKERS, CRASHES, PAUSES, COPIES and HANDBACKS bound it; all of them are set by -D. Each BUG_*
 * breaks one promise; their numbers are those of docs/guarantees.md.
 */

#define CAP 2       /* claims_max_deliveries */

/* With ONLY, the assertions of the other promises are left out. */
#ifndef ONLY
#define ONLY 0
#endif
#define promise(number, what) assert((what) || (ONLY && ONLY != number))

mtype = { NONE, CLAIMED, FREE, FINISHED };                          /* the record */
mtype = { IDLE, DELIVERED, GRANTED, EXHAUSTED, RUNNING, ENDED, ACKING };  /* a worker */

/* The store: one record, and the high-water of its shard. */
mtype state = NONE;
byte token, attempt, deliveries, high;
bool over, started;     /* the lease is over; the body of the last grant is known to have begun */

/* The broker: copies that wait, and copies of dead workers that it has not given out again. */
byte waiting[2], unacked[2];

/* The workers. A claim is trusted as long as its owner knows that its lease is not over. */
mtype phase[WORKERS] = IDLE;
byte mine[WORKERS], run_of[WORKERS];
bool trusted[WORKERS], paused[WORKERS], took_over[WORKERS];

/* What may still go wrong. */
byte crashes = CRASHES, pauses = PAUSES, copies = COPIES, handbacks = HANDBACKS;

/* What an observer of everything knows, and no part of the protocol reads. */
bool published[2], done[2], frozen[WORKERS];
byte granted, newest, deaths[2];

hidden byte i;          /* counts within one step */

#define is_owner(w) (state == CLAIMED && mine[w] == token)
#define still_last(w) (mine[w] == token && (state == CLAIMED || (state == FREE && over)))
#define holds(w) (phase[w] == GRANTED || phase[w] == EXHAUSTED || phase[w] == RUNNING || phase[w] == ENDED)
#define at_work(w) (phase[w] == RUNNING && !paused[w] && !frozen[w])
#define nothing_waits (waiting[0] + waiting[1] + unacked[0] + unacked[1] == 0)

inline grant(w, next_phase)
{
    high++;
#ifdef BUG_TOKENS
    if :: state == NONE -> high = 1 :: else fi;
#endif
    token = high;
    state = CLAIMED;
    attempt = run_of[w];
    over = false;
    started = false;
    mine[w] = token;
    trusted[w] = true;
    frozen[w] = false;
    promise(2, token > granted);    /* tokens rise */
    granted = token;
    if :: run_of[w] > newest -> newest = run_of[w] :: else fi;
    phase[w] = next_phase;
}

/* protocol.decide_claim */
inline claim(w)
{
    took_over[w] = false;
    if
#ifndef BUG_RETRY
    :: state != NONE && attempt > run_of[w] -> phase[w] = ACKING               /* Superseded */
#endif
#ifndef BUG_FINISHED
    :: state == FINISHED && attempt == run_of[w] -> phase[w] = ACKING          /* Finished */
#endif
#ifdef BUG_EXCLUSIVE
    :: state == CLAIMED && !over -> deliveries = 0; grant(w, GRANTED)
#endif
#ifdef BUG_LOST
    :: state == CLAIMED && !over && attempt == run_of[w] -> phase[w] = ACKING
#endif
    :: else ->
        if
        :: state == NONE || state == FINISHED || attempt != run_of[w] -> deliveries = 0
        :: else ->
            if
#ifndef BUG_POISON
            :: state == CLAIMED && started -> deliveries++
#endif
            :: else
            fi
        fi;
        took_over[w] = (state == CLAIMED || (state == FREE && over));      /* TookOver */
        if
        :: deliveries >= CAP -> grant(w, EXHAUSTED)                        /* Exhausted */
        :: else -> grant(w, GRANTED)                                      /* Success */
        fi
    fi
}

/* Whether a claim by this worker would be denied for now: AlreadyClaimed. */
#ifdef BUG_STUCK
#define lives (state == CLAIMED)
#else
#define lives (state == CLAIMED && !over)
#endif
#define denied(w) (lives && attempt <= run_of[w])

/* protocol.decide_renew: true of `known` unless the answer is Lost or Ended */
inline renew(w, known)
{
    known = still_last(w);
    if
    :: known ->
        if :: state == FREE && started -> deliveries-- :: else fi;         /* it was late, not dead */
        state = CLAIMED;
        over = false;
        trusted[w] = true;
        frozen[w] = false
    :: else
    fi
}

inline begin(w)
{
    for (i : 0 .. WORKERS - 1) {
        promise(1, i == w || !(trusted[i] && (phase[i] == GRANTED || phase[i] == RUNNING)));
        promise(3, i == w || !at_work(i))
    }
    promise(4, !done[run_of[w]]);
    promise(7, is_owner(w) && !over);           /* not on a lease that is gone */
    promise(8, deaths[run_of[w]] <= CAP);
    promise(9, run_of[w] >= newest);            /* no stale attempt */
    if
    :: took_over[w] -> started = true
    :: !took_over[w] -> started = true
    :: !took_over[w]                            /* left to the next beat */
    fi;
    phase[w] = RUNNING;
    took_over[w] = false
}

/* What no longer matters is zero, so that states which differ in it are one. */
inline forget(w)
{
    mine[w] = 0; run_of[w] = 0; trusted[w] = false; frozen[w] = false; took_over[w] = false
}

hidden byte known;

proctype Worker(byte w)
{
    do
    :: atomic { phase[w] == IDLE && waiting[0] > 0 ->                      /* a delivery */
        waiting[0]--; run_of[w] = 0; phase[w] = DELIVERED }
    :: atomic { phase[w] == IDLE && waiting[1] > 0 ->
        waiting[1]--; run_of[w] = 1; phase[w] = DELIVERED }

#if defined(BUG_EXCLUSIVE) || defined(BUG_LOST)
    :: atomic { phase[w] == DELIVERED && !paused[w] -> claim(w) }
#else
    :: atomic { phase[w] == DELIVERED && !paused[w] && !denied(w) -> claim(w) }  /* else held */
#endif

    /* Desk.submitted and the tracer: a lease that may be over is renewed before the body begins. */
    :: atomic { phase[w] == GRANTED && !paused[w] ->
#ifndef BUG_START
        known = true;
        if :: !trusted[w] -> renew(w, known) :: else fi;
        if
        :: known -> begin(w)
        :: else -> phase[w] = DELIVERED
        fi
#else
        begin(w)
#endif
        }

    /* Desk.returned at a shutdown, protocol.decide_settle: nacked */
    :: atomic { phase[w] == GRANTED && !paused[w] && handbacks > 0 ->
        handbacks--;
        if :: is_owner(w) -> state = FREE; over = false :: else fi;
        waiting[run_of[w]]++;
        phase[w] = IDLE; forget(w) }

    /* Desk.beat and Desk.renewed: a run that lost its claim is stopped and its message held. */
    :: atomic { phase[w] == RUNNING && !paused[w] && (!trusted[w] || !started) ->
        renew(w, known);
        if
        :: known -> started = true
        :: else -> phase[w] = DELIVERED
        fi }

    /* The end of the body, before anything of it goes out. */
    :: atomic { phase[w] == RUNNING && !paused[w] ->
#ifndef BUG_TOLD
        known = true;
        if :: !trusted[w] -> renew(w, known) :: else fi;
#else
        known = true;
#endif
        if
        :: known ->
            promise(7, mine[w] == granted);     /* nothing of a lost run goes out */
            if
            :: true                             /* success or failure */
            :: run_of[w] == 0 && !published[1] -> published[1] = true; waiting[1]++   /* retry() */
            fi;
            phase[w] = ENDED
        :: else -> phase[w] = DELIVERED
        fi }

    /* protocol.decide_settle: finished */
    :: atomic { (phase[w] == ENDED || phase[w] == EXHAUSTED) && !paused[w] ->
        if
#ifdef BUG_FENCE
        :: state == CLAIMED ->
#else
        :: still_last(w) ->
#endif
            promise(2, mine[w] == token);       /* a stale owner changes nothing */
            state = FINISHED;
            done[run_of[w]] = true;
            phase[w] = ACKING
        :: else -> phase[w] = DELIVERED         /* Lost */
        fi }

    :: atomic { phase[w] == ACKING && !paused[w] ->
        /* An attempt has ended if it finished or published the next one. */
        promise(5, done[run_of[w]] || (run_of[w] == 0 && published[1]));
        phase[w] = IDLE; forget(w) }

    :: atomic { phase[w] != IDLE && crashes > 0 ->
        crashes--;
        if :: phase[w] == RUNNING -> deaths[run_of[w]]++ :: else fi;
        unacked[run_of[w]]++;
        phase[w] = IDLE; paused[w] = false; forget(w) }
    :: atomic { holds(w) && !paused[w] && pauses > 0 ->
        pauses--; paused[w] = true; frozen[w] = true }
    :: atomic { paused[w] -> paused[w] = false }
    od
}

/* The store's clock: a lease ends only while its owner does not renew it. */
hidden byte kept;

proctype Clock()
{
    do
    :: atomic { state == CLAIMED && !over ->
        kept = false;
        for (i : 0 .. WORKERS - 1) {
            kept = kept || (mine[i] == token && holds(i) && !paused[i])
        }
#ifdef BUG_RENEW
        kept = false;
#endif
        if
        :: !kept ->
            over = true;
            for (i : 0 .. WORKERS - 1) {
                if :: mine[i] == token -> trusted[i] = false :: else fi
            }
        :: else
        fi }
    od
}

/* Sweeper.run_once, in two steps between which it may die; protocol.decide_expire */
proctype Sweeper()
{
    byte seen;
    do
    :: atomic { state == CLAIMED && over -> seen = token };
        if
        :: atomic { unacked[attempt] > 0 -> unacked[attempt]--; waiting[attempt]++ }
        :: true
        fi;
        if
        :: atomic { state == CLAIMED && over && token == seen ->
            state = FREE;
            if :: started -> deliveries++ :: else fi;
            seen = 0 }
        :: true                                 /* it died, or the claim was renewed */
        fi;
        seen = 0
    od
}

/* The broker gives out again what was never acknowledged, and makes copies. */
proctype Broker()
{
    do
    :: atomic { unacked[0] > 0 -> unacked[0]--; waiting[0]++ }
    :: atomic { unacked[1] > 0 -> unacked[1]--; waiting[1]++ }
    :: atomic { copies > 0 && state != NONE -> copies--; waiting[0]++ }
    :: atomic { copies > 0 && published[1] && state != NONE -> copies--; waiting[1]++ }
    od
}

/* Counters may be forgotten at any time. That an attempt ended is kept for longer than its copies
   live: claims_keep_finished. */
proctype Forgetting()
{
    do
    :: atomic { state == FREE && newest == 0 -> state = NONE; over = false; deaths[0] = 0; deaths[1] = 0 }
    od
}

init
{
    atomic {
        published[0] = true;
        waiting[0] = 1;
        byte w;
        for (w : 0 .. WORKERS - 1) { run Worker(w) }
        run Clock();
        run Sweeper();
        run Broker();
        run Forgetting()
    }
}

#define everything_ended (nothing_waits && phase[0] == IDLE && phase[1] == IDLE && (done[1] || (done[0] && !published[1])))

/* promise 6, BACK SOON: once nothing goes wrong any more, all that was published ends. */
ltl back { <> everything_ended }
