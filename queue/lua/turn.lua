-- Ends a batch of jobs and claims the next ones: one round trip.
-- KEYS 1 hb  2 a  3 redo  4 in:hi  5 in  6 in:lo  7 land  8 land:hi  9 land:lo  10 del  11 delb
--      12 dead  13 deadb  14 cfg  15 fence  16 pops  17 st  18 cx, then the items' keys, the slots to
--      sweep, the slots to admit
-- ARGV 1 wid  2 how many to claim  3 now  4..7 shares of redo, hi, in, lo  8 look into land?
--      9 look into the inboxes?  10 number of items  11 of slots to sweep  12 of slots to admit, then
--      the items: token, verb, what the verb needs; the inbox flag of each slot to sweep; the marker
--      of each slot to admit (slot.c)
-- Verbs: e end as done, with nobody to tell  c commit  x bury  d delay  h hand back  l leave  r repeat
-- the stored result; followed by an s if the entry lies in a slot, which is then the item's first key.
-- e is what c would do, for the many: it has half the words, and words are what a turn costs most.
-- Returns {alive, paused, cancellations, next due, first token, a word an item, entries claimed,
-- a word a slot swept (0 empty, 2 owned) and then a slot admitted (1, or 0: not a single entry)};
-- tokens of admitted slots follow those of the entries.
-- The first write of an item is HDEL, the first of a claim RPOP: both free memory, so that the rest
-- of the script runs on a full Redis too.
local call, a, now = redis.call, KEYS[2], ARGV[3]
local want, at, key = tonumber(ARGV[2]), 13, 18
local mark = '@' .. ARGV[1]
local said, stat = {}, {}

local function bit(flags, b) return flags % (b + b) >= b end

local function json(entry)
  local from = string.match(entry, '^~1,%d+,%d+,%d+,%w*~()')
  return from and string.sub(entry, from) or entry
end

local function inbox(header)
  local f = string.match(header, '^~[%d,]+,([hl]?)')
  if f == 'h' then return KEYS[4] elseif f == 'l' then return KEYS[6] end
  return KEYS[5]
end

-- Keys of an item follow its flags: r, [n], [reply_to], [s], [u], [b, b:d, b:s].
local function ended(flags, ttl, id, envelope, state, mine)
  local k = key + 1
  local fresh = false
  if mine then
    if envelope then
      fresh = call('SET', KEYS[k], envelope, 'PX', ttl, 'NX')
    end
    if not fresh then envelope = call('GET', KEYS[k]) end
  end
  k = k + 1
  if bit(flags, 1) then
    if mine then
      call('LPUSH', KEYS[k], '1')
      call('PEXPIRE', KEYS[k], ttl)
    end
    k = k + 1
  end
  if bit(flags, 2) then
    if mine and envelope then
      call('LPUSH', KEYS[k], envelope)
      call('PEXPIRE', KEYS[k], ttl)
    end
    k = k + 1
  end
  if bit(flags, 4) then
    if fresh then
      call('HSET', KEYS[k], 'state', state, 'ended_ms', now)
      call('PEXPIRE', KEYS[k], ttl)
    end
    k = k + 1
  end
  if bit(flags, 8) then
    if mine and call('GET', KEYS[k]) == id then call('DEL', KEYS[k]) end
    k = k + 1
  end
  if bit(flags, 16) then
    if mine then call('DEL', KEYS[k], KEYS[k + 1], KEYS[k + 2]) end
    k = k + 3
  end
  if mine and bit(flags, 32) then call('HDEL', KEYS[18], id) end
  key = k - 1
  if fresh then
    stat[state] = (stat[state] or 0) + 1
    return '1'
  end
  return '2'
end

local function item(token, verb)
  local slot
  if #verb > 1 then
    verb, key = string.sub(verb, 1, 1), key + 1
    slot = KEYS[key]
  end
  local entry = (verb == 'x' or verb == 'd' or verb == 'h') and call('HGET', a, token)
  local mine = call('HDEL', a, token) == 1
  if mine and slot then
    if entry then entry = call('LINDEX', slot, -1) or '' end
    call('LTRIM', slot, 0, -3) -- the mark and the entry, without passing it through here
  end
  local word = '1'
  if verb == 'c' or verb == 'x' then
    local flags, id, envelope = tonumber(ARGV[at + 2]), ARGV[at + 4], ARGV[at + 5]
    word = ended(flags, ARGV[at + 3], id, envelope, ARGV[at + 6], mine)
    if mine and verb == 'x' and word == '1' then
      call('ZADD', KEYS[12], now, id)
      call('HSET', KEYS[13], id, #envelope .. ':' .. envelope .. json(entry))
    end
    at = at + 7
  elseif verb == 'r' then
    ended(tonumber(ARGV[at + 2]), ARGV[at + 3], ARGV[at + 4], false, '', mine)
    at = at + 5
  elseif verb == 'd' then
    local flags, header, due, id = tonumber(ARGV[at + 2]), ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
    if mine then
      call('ZADD', KEYS[10], due, id)
      call('HSET', KEYS[11], id, header .. json(entry))
      stat[ARGV[at + 6]] = (stat[ARGV[at + 6]] or 0) + 1
    end
    if bit(flags, 4) then
      key = key + 1
      if mine then call('HSET', KEYS[key], 'state', ARGV[at + 6], 'due_ms', due) end
    end
    at = at + 7
  elseif verb == 'h' then
    if mine then call('RPUSH', inbox(ARGV[at + 2]), ARGV[at + 2] .. json(entry)) end
    at = at + 3
  else
    at = at + 2
  end
  return mine and word or '0'
end

local done = 0
for i = 1, tonumber(ARGV[10]) do
  local token, verb = ARGV[at], ARGV[at + 1]
  if verb ~= 'e' then
    said[i] = item(token, verb)
  else
    key = key + 1
    if call('HDEL', a, token) == 0 then
      said[i] = '0'
    elseif call('SET', KEYS[key], ARGV[at + 3], 'PX', ARGV[at + 2], 'NX') then
      said[i], done = '1', done + 1
    else
      said[i] = '2'
    end
    at = at + 4
  end
end

if done > 0 then stat['done'] = (stat['done'] or 0) + done end
for name, count in pairs(stat) do call('HINCRBY', KEYS[17], name, count) end
if next(stat) then call('EXPIRE', KEYS[17], 7200) end

local out, alive = {}, call('HEXISTS', KEYS[1], ARGV[1]) == 1
local paused = call('HGET', KEYS[14], 'paused') == '1'
if paused or not alive then want = 0 end

-- What only looks like a header is a producer's mistake: it keeps its bytes.
local function take(entry, flag)
  if string.byte(entry) ~= 126 or not string.find(entry, '^~1,%d+,%d+,%d+,%w*~') then
    entry = '~1,0,0,' .. now .. ',' .. flag .. '~' .. entry
  end
  out[#out + 1] = entry
end

local swept = {}
for i = 1, tonumber(ARGV[11]) do
  local slot, flag, word = KEYS[key + i], ARGV[at], '0'
  at = at + 1
  for _ = 1, call('LLEN', slot) do
    local entry = call('LPOP', slot)
    if entry == mark then
      call('LPUSH', slot, mark)
      word = '2'
      break
    end
    if #out < want then
      take(entry, flag)
    else
      call('RPUSH', flag == 'h' and KEYS[4] or flag == 'l' and KEYS[6] or KEYS[5], entry)
    end
  end
  swept[i] = word
end
key = key + tonumber(ARGV[11])

if ARGV[8] == '1' then
  local flags = {'', 'h', 'l'}
  local back = {KEYS[5], KEYS[4], KEYS[6]}
  for i = 1, 3 do
    local entry = call('RPOP', KEYS[6 + i])
    while entry do
      if #out < want then take(entry, flags[i]) else call('RPUSH', back[i], entry) end
      entry = call('RPOP', KEYS[6 + i])
    end
  end
end

local function pop(list, most, flag)
  if most > want - #out then most = want - #out end
  if most <= 0 then return 0 end
  local got = call('RPOP', list, most)
  if not got then return 0 end
  for i = 1, #got do take(got[i], flag) end
  return #got
end

local due = -1
if #out < want then
  local redo = tonumber(ARGV[4])
  redo = redo - pop(KEYS[3], redo, '')
  if redo > want - #out then redo = want - #out end
  if redo > 0 then
    local ids = call('ZRANGEBYSCORE', KEYS[10], '-inf', now, 'LIMIT', 0, redo)
    for i = 1, #ids do
      local entry = call('HGET', KEYS[11], ids[i])
      call('ZREM', KEYS[10], ids[i])
      call('HDEL', KEYS[11], ids[i])
      if entry then take(entry, '') end
    end
  end
  if ARGV[9] == '1' then
    pop(KEYS[4], tonumber(ARGV[5]), 'h')
    pop(KEYS[5], tonumber(ARGV[6]), '')
    pop(KEYS[6], tonumber(ARGV[7]), 'l')
    pop(KEYS[4], want, 'h')
    pop(KEYS[5], want, '')
    pop(KEYS[6], want, 'l')
  end
  pop(KEYS[3], want, '')
  if #out < want then
    local first = call('ZRANGE', KEYS[10], 0, 0, 'WITHSCORES')
    if first[2] then due = tonumber(first[2]) end
  end
end

local admitted = {}
for i = 1, tonumber(ARGV[12]) do
  local slot, word = KEYS[key + i], '0'
  if alive and not paused and call('LLEN', slot) == 1 then
    if #admitted == 0 then call('HDEL', a, '') end -- a freeing write first, for a full Redis
    call('LPUSH', slot, mark)
    admitted[#admitted + 1] = ARGV[at]
    word = '1'
  end
  at = at + 1
  swept[#swept + 1] = word
end

local last, n = 0, #out + #admitted
if n > 0 then
  last = call('INCRBY', KEYS[15], n)
  call('INCRBY', KEYS[16], n)
  local own = {}
  for i = 1, n do
    own[2 * i - 1] = string.format('%d', last - n + i)
    own[2 * i] = out[i] or admitted[i - #out]
  end
  call('HSET', a, unpack(own))
end
return {alive and 1 or 0, paused and 1 or 0, call('HLEN', KEYS[18]), due, last - n + 1,
        table.concat(said), out, table.concat(swept)}
