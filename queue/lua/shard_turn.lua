-- A ticket's range is done (if it says one), what next?
-- KEYS 1 a  2 b  3 b:d (done bits)  4 b:s (bits where a committed range starts)  5 s  6 cx
-- ARGV 1 token  2 ticket  3 id  4 now  5 deaths of this ticket so far  6 ttl of the status
--      7 first (-1: nothing to commit)  8 count  9 rows ok  10 rows failed
-- Returns {step, first, count, deaths on it, grains done, rows ok, rows failed, then the plan}.
-- Steps: 0 range  1 finalise  2 leave  3 cancelled  4 lost.
redis.call('HDEL', KEYS[6], '') -- a freeing write first, for a full Redis
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return {4} end
local b, slot, deaths = KEYS[2], 'o:' .. ARGV[2], tonumber(ARGV[5])
local v = redis.call('HMGET', b, 'grains', 'tickets', 'range_max', 'cursor', 'done', 'rows_ok', 'rows_failed', 'fin',
                     slot, 'n_rows', 'grain_rows', 'started_ms')
if not v[1] then return {2} end
local grains, tickets, most = tonumber(v[1]), tonumber(v[2]), tonumber(v[3])
local cursor, done = tonumber(v[4]), tonumber(v[5])
local ok, failed = tonumber(v[6]), tonumber(v[7])
local first, count, base = string.match(v[9] or '', '^(%d+),(%d+),(%d+)$')
first, count, base = tonumber(first), tonumber(count), tonumber(base)

if tonumber(ARGV[7]) >= 0 and first == tonumber(ARGV[7]) and count == tonumber(ARGV[8]) then
  local fresh = 0
  for i = first, first + count - 1 do fresh = fresh + 1 - redis.call('SETBIT', KEYS[3], i, 1) end
  if fresh == count then
    redis.call('SETBIT', KEYS[4], first, 1)
    done, ok, failed = done + count, ok + tonumber(ARGV[9]), failed + tonumber(ARGV[10])
    redis.call('HSET', b, 'done', done, 'rows_ok', ok, 'rows_failed', failed)
    redis.call('HSET', KEYS[5], 'state', 'running', 'updated_ms', ARGV[4], 'rows', v[10], 'rows_done', ok + failed,
               'rows_failed', failed)
    redis.call('PEXPIRE', KEYS[5], ARGV[6])
  end
  redis.call('HDEL', b, slot)
  first = nil
end

local step, on = 0, 0
if redis.call('HEXISTS', KEYS[6], ARGV[3]) == 1 then
  step = 3
elseif first then
  on = deaths - base -- the range that this ticket had when its holder went
elseif cursor < grains then
  first, count = cursor, math.floor((grains - cursor) / (2 * tickets))
  if count > most then count = most elseif count < 1 then count = 1 end
  redis.call('HSET', b, 'cursor', cursor + count, slot, first .. ',' .. count .. ',' .. deaths)
elseif done < grains then
  step = 2 -- what is left is in the hands of other tickets
else
  local ticket, since = string.match(v[8] or '', '^(%d+),(%d+)$')
  if not ticket then
    ticket, since = ARGV[2], ARGV[5]
    redis.call('HSET', b, 'fin', ticket .. ',' .. since)
  end
  step = ticket == ARGV[2] and 1 or 2
  on = deaths - tonumber(since)
end
return {step, first or 0, count or 0, on, done, ok, failed, grains, tickets, most, tonumber(v[10]), tonumber(v[11]),
        tonumber(v[12])}
