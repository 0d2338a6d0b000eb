-- A bulk job begins: its entry becomes ticket 0, the other tickets go to the front of its inbox.
-- KEYS 1 a  2 b  3 in  4 in:hi  5 in:lo  6 s  7 the slot that holds the entry, if one does
-- ARGV 1 token  2 header for ticket 0, up to the number  3 end of the header  4 tickets  5 now  6 ttl of the status, then fields of b
-- Returns 1 opened, 0 it is open already, -1 not mine.
redis.call('HDEL', KEYS[1], '') -- a freeing write first, for a full Redis
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry then return -1 end
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if string.byte(entry) == 64 then
  entry = redis.call('LINDEX', KEYS[7], -1)
  redis.call('LTRIM', KEYS[7], 0, -3)
end
local from = string.match(entry, '^~1,%d+,%d+,%d+,%w*~()')
local json = from and string.sub(entry, from) or entry
redis.call('HSET', KEYS[2], unpack(ARGV, 7))
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '0' .. ARGV[3] .. json)
local f = string.match(ARGV[2], '^~[%d,]+,([hl]?)')
local list = f == 'h' and KEYS[4] or f == 'l' and KEYS[5] or KEYS[3]
for i = tonumber(ARGV[4]) - 1, 1, -1 do redis.call('RPUSH', list, ARGV[2] .. i .. ARGV[3] .. json) end
redis.call('HSET', KEYS[6], 'state', 'running', 'started_ms', ARGV[5], 'updated_ms', ARGV[5], 'rows_done', 0,
           'rows_failed', 0)
redis.call('PEXPIRE', KEYS[6], ARGV[6])
return 1
